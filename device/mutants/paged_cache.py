"""Wrong writes into a paged cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.paged_cache import (
    Outputs,
    caches,
    index_put,
    nz_rows,
    scatter_nd_update,
    scatter_nz_rows,
    scatter_pa,
    scatter_pa_norm,
    scatter_pa_nz,
    scatter_rows,
)
from npudiff.reference.paged_cache import PagedCacheInputs

_NZ = scatter_pa_nz.constraints.boxes
_ND = {"layout": ("PA_BSND",), "rows": ("contiguous",)}


@mutant(scatter_pa_nz, "PKV-06 sgl-project/sglang/pull/14423: NZ on the reader's side only")
def nz_pool_written_as_nd(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """Write in ND order into a cache that is read as NZ."""
    page = (inputs.key_cache.shape[0], inputs.page_size)
    seen = _seen_as(inputs, (*page, *inputs.key.shape[1:]), (*page, *inputs.value.shape[1:]))
    return _as_before(inputs, scatter_pa(seen, target, "Norm"))


@mutant(
    scatter_pa_norm,
    "PKV-05 sgl-project/sglang/pull/14423: the mode does not arrive; its default is PA_NZ",
    supports={"kv_heads": (1, 2, 4, 8), "head_dims": ("64", "128", "192/128", "512/64", "256")},
)
def cache_mode_default_on_nd(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """Leave out cache_mode on an ND cache."""
    strips = (inputs.key_cache.shape[0], -1, inputs.page_size, 32 // inputs.key.element_size())
    return _as_before(inputs, scatter_pa(_seen_as(inputs, strips, strips), target, "PA_NZ"))


def _seen_as(inputs: PagedCacheInputs, key: tuple[int, ...], value: tuple[int, ...]) -> PagedCacheInputs:
    """The same bytes in other shapes."""
    return replace(inputs, key_cache=inputs.key_cache.view(key), value_cache=inputs.value_cache.view(value))


def _as_before(inputs: PagedCacheInputs, written: Outputs) -> Outputs:
    return {
        "key_cache": written["key_cache"].view(inputs.key_cache.shape),
        "value_cache": written["value_cache"].view(inputs.value_cache.shape),
    }


@perturbed(
    scatter_pa_norm,
    "PKV-08 vllm-project/vllm-ascend/pull/16775: int64 slots read as int32",
    supports={"slots_dtype": ("int64",)},
)
def slots_int64_as_int32(inputs: PagedCacheInputs) -> PagedCacheInputs:
    """Read the slots' memory as int32: every second one is 0, and the later half is missing."""
    narrow = inputs.slots.view(torch.int32)[: len(inputs.slots)]
    return replace(inputs, slots=narrow)


@perturbed(
    scatter_pa_norm,
    "PKV-09 vllm-project/vllm-ascend/pull/16775: only the local tokens are written",
    supports={"tokens": range(2, 2**16)},
)
def slots_truncated(inputs: PagedCacheInputs) -> PagedCacheInputs:
    """Write the first half of the tokens only."""
    local = (len(inputs.slots) + 1) // 2
    return replace(inputs, key=inputs.key[:local], value=inputs.value[:local], slots=inputs.slots[:local])


@mutant(scatter_nz_rows, "PKV-03 sgl-project/sglang/pull/24582: values addressed with the head dim of keys")
def nz_rows_of_key_dim(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """Compute the rows of the value cache as if its head dim were the keys'."""
    slots, size = inputs.slots.to(torch.int64), inputs.page_size
    scatter_rows(inputs.key_cache, inputs.key, nz_rows(slots, size, inputs.key.shape[2]))
    index = nz_rows(slots, size, inputs.key.shape[2])[:, : inputs.value.shape[2] // 16]
    rows = inputs.value_cache.numel() // 16
    scatter_rows(inputs.value_cache, inputs.value[..., : 16 * index.shape[1]], index % rows)
    return caches(inputs)


@perturbed(
    index_put,
    "PKV-17 vllm-project/vllm/issues/49716: strides are derived from shapes",
    supports={"tokens": range(2, 2**16)},
)
def strides_from_shapes(inputs: PagedCacheInputs) -> PagedCacheInputs:
    """Take slices of wider rows for contiguous."""
    key, value = (
        rows.as_strided(rows.shape, (rows.shape[1] * rows.shape[2], rows.shape[2], 1))
        for rows in (inputs.key, inputs.value)
    )
    return replace(inputs, key=key, value=value)


@perturbed(scatter_pa_norm, "PKV-18 vllm-project/vllm-ascend/pull/7209: a raw buffer is cut by elements, not by bytes")
def pools_cut_by_elements(inputs: PagedCacheInputs) -> PagedCacheInputs:
    """Begin the values as many bytes behind the keys as these have elements."""
    keys, values = inputs.key_cache, inputs.value_cache
    raw = torch.zeros(keys.nbytes + values.nbytes, dtype=torch.uint8)
    begins = (0, keys.numel())
    key, value = (
        raw[first : first + pool.nbytes].view(pool.dtype).view(pool.shape)
        for first, pool in zip(begins, (keys, values), strict=True)
    )
    key.copy_(keys)
    value.copy_(values)
    return replace(inputs, key_cache=key, value_cache=value)


CAPTURED = 64
"""Captured numbers of rows are multiples of it."""


@mutant(
    scatter_pa_norm,
    "GRF-05 vllm-project/vllm-ascend/pull/11408: requests that pad a graph's batch write too",
    stateful=True,
)
def padded_rows_of_a_batch_before() -> Callable[[PagedCacheInputs, Target], Outputs]:
    """Fill a captured batch up with the rows and slots that its buffers hold from an earlier call."""
    buffers: dict[object, tuple[torch.Tensor, ...]] = {}

    def write(inputs: PagedCacheInputs, target: Target) -> Outputs:
        given = (inputs.key, inputs.value, inputs.slots)
        kind = (inputs.key_cache.shape, inputs.value_cache.shape, inputs.key.dtype, inputs.slots.dtype)
        real = len(inputs.slots)
        captured = -(-real // CAPTURED) * CAPTURED
        held = buffers.get(kind, given)
        key, value, slots = (torch.cat([now, before[real:captured]]) for now, before in zip(given, held, strict=True))
        buffers[kind] = tuple(torch.cat([now, before[real:]]) for now, before in zip(given, held, strict=True))
        return scatter_pa_norm(replace(inputs, key=key, value=value, slots=slots), target)

    return write


@mutant(
    scatter_nd_update,
    "vllm-project/vllm-ascend/issues/16736: numbers of a tensor are read on the host while a graph is captured",
    graph=True,
)
def slots_read_on_the_host(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """Write rows one by one, wherever the host sees that they go."""
    for row, slot in enumerate(inputs.slots.tolist()):
        for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
            cache.view(-1, *rows.shape[1:])[slot] = rows[row]
    return caches(inputs)
