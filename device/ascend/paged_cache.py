"""How backends write new keys and values into a paged cache: one operator, and one layout, per implementation."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Joined
from npudiff.reference.paged_cache import PagedCacheInputs

Outputs = dict[str, torch.Tensor]

STRIP = 16
"""C0 of two-byte elements: columns per strip of PA_NZ."""

_NO_SKIPPING = {"padding": ("slot 0",)}
_CONTIGUOUS = {"rows": ("contiguous",)}
"""The documentation of npu_scatter_pa_kv_cache asks for it; that of _npu_reshape_and_cache says nothing of strides."""
_FLOATS = {"dtype": ("bfloat16", "float16")}


def _strips(width: int) -> Joined:
    """Head dims of whole strips: 32 bytes of one head."""
    return Joined((range(width, 2**16 + 1, width),) * 2, short=True)


def caches(inputs: PagedCacheInputs) -> Outputs:
    """Return the caches of inputs, after an operator wrote into them in place."""
    return {"key_cache": inputs.key_cache, "value_cache": inputs.value_cache}


@implementation("paged_cache", supports={"layout": ("PA_BSND",), **_NO_SKIPPING}, on_device=True, graph=True)
def scatter_nd_update(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """FIA pool of sglang: one row per slot of the cache seen as [slots, heads, dim]."""
    slots = inputs.slots.view(-1, 1)
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        torch.ops.npu.npu_scatter_nd_update_(cache.view(-1, *rows.shape[1:]), slots, rows)
    return caches(inputs)


@implementation(
    "paged_cache",
    supports={"layout": ("PA_BSND",), "slots_dtype": ("int32",), **_CONTIGUOUS},
    on_device=True,
    graph=True,
)
def reshape_and_cache(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """ATB operator on a 4-D cache, the path without FIA."""
    torch.ops.atb._npu_reshape_and_cache(
        key=inputs.key,
        value=inputs.value,
        key_cache=inputs.key_cache,
        value_cache=inputs.value_cache,
        slot_indices=inputs.slots,
    )
    return caches(inputs)


@implementation("paged_cache", supports={"layout": ("PA_BSND",), **_CONTIGUOUS}, graph=True)
def scatter_pa_norm(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """npu_scatter_pa_kv_cache with cache_mode="Norm"."""
    return scatter_pa(inputs, target, "Norm")


@implementation(
    "paged_cache",
    supports=[
        {"layout": ("PA_NZ",), "head_dims": _strips(16), **_FLOATS, **_CONTIGUOUS},
        {
            **_CONTIGUOUS,
            "layout": ("PA_NZ",),
            "dtype": ("int8",),
            "head_dims": _strips(32),
        },
    ],
    graph=True,
)
def scatter_pa_nz(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """npu_scatter_pa_kv_cache with cache_mode="PA_NZ"."""
    return scatter_pa(inputs, target, "PA_NZ")


def scatter_pa(inputs: PagedCacheInputs, target: Target, cache_mode: str) -> Outputs:
    """Write with npu_scatter_pa_kv_cache, into caches as they lie."""
    on_device = inputs.to(target.device)
    torch.ops.npu.npu_scatter_pa_kv_cache(
        on_device.key,
        on_device.value,
        on_device.key_cache,
        on_device.value_cache,
        on_device.slots,
        cache_mode=cache_mode,
    )
    return caches(on_device)


@implementation(
    "paged_cache",
    supports={"layout": ("PA_NZ",), "kv_heads": (1,), **_FLOATS, **_NO_SKIPPING},
    on_device=True,
    graph=True,
)
def scatter_nz_rows(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """MLA pool of sglang in NZ: every token is cut into rows of 16, each scattered to a row of the cache."""
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        scatter_rows(cache, rows, nz_rows(inputs.slots.to(torch.int64), inputs.page_size, rows.shape[2]))
    return caches(inputs)


def nz_rows(slots: torch.Tensor, page_size: int, dim: int) -> torch.Tensor:
    """Rows of the cache seen as [rows, 16] that hold a token, int64 ``[tokens, dim // 16]`` (memory pool of sglang)."""
    strips = torch.arange(dim // STRIP, device=slots.device)
    page, offset = (slots // page_size).unsqueeze(1), (slots % page_size).unsqueeze(1)
    return (page * (dim // STRIP) + strips) * page_size + offset


def scatter_rows(cache: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> None:
    """Scatter tokens, cut into rows of 16, to rows of the cache."""
    torch.ops.npu.npu_scatter_nd_update_(cache.view(-1, STRIP), index.reshape(-1, 1), rows.reshape(-1, STRIP))


@implementation("paged_cache", supports={"layout": ("PA_BSND", "PA_BNSD"), **_NO_SKIPPING}, on_device=True, graph=True)
def index_put(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """Plain indexing: the path without fused operators."""
    page, offset = inputs.slots // inputs.page_size, inputs.slots % inputs.page_size
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        pages = cache if inputs.layout == "PA_BSND" else cache.transpose(1, 2)
        pages[page, offset] = rows
    return caches(inputs)
