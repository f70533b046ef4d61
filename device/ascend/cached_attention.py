"""Writing to a pool and attention over it, as the flags of a backend combine them: ND, NZ, or one after the other.

In sglang two flags choose the layouts of writer and reader (SGLANG_USE_FIA_NZ, SGLANG_NPU_USE_MLAPO), and they are read
in two modules.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import tnd_call
from npudiff.model.constraints import Box
from npudiff.reference.cached_attention import CachedAttentionInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

STRIP = 16
"""C0 of two-byte elements: columns per strip of PA_NZ."""

SUPPORTED: Box = {
    "dtype": ("bfloat16",), "page_size": range(16, 1025, 16), "group": range(1, 65), "head_dim": (64, 128),
}  # fmt: skip
"""What FIA v2 takes in layout TND with head dims of 64 and 128."""


@implementation(
    "cached_attention",
    supports={**SUPPORTED, "write_layout": ("PA_BSND",), "read_layout": ("PA_BSND",)},
    on_device=True,
    graph=True,
)
def nd_pool(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """npu_scatter_nd_update_ into an ND pool, and FIA v2 on it."""
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        torch.ops.npu.npu_scatter_nd_update_(cache.view(-1, *rows.shape[1:]), inputs.slots.view(-1, 1), rows)
    return attend(inputs, PagedKV(inputs.key_cache, inputs.value_cache, inputs.block_table))


@implementation(
    "cached_attention",
    supports={**SUPPORTED, "write_layout": ("PA_NZ",), "read_layout": ("PA_NZ",)},
    on_device=True,
    graph=True,
)
def nz_pool(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """npu_scatter_pa_kv_cache into an NZ pool, and FIA v2 on its five axes."""
    return attend(inputs, as_five_axes(inputs, *written_nz(inputs)))


@implementation("cached_attention", supports=SUPPORTED, on_device=True, graph=True)
def converted_pool(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """Written in one layout and read in another: the pool is converted in between where they differ."""
    key, value = written(inputs)
    if inputs.write_layout != inputs.read_layout:
        convert = to_nz if inputs.read_layout == "PA_NZ" else to_nd
        key, value = convert(inputs, key), convert(inputs, value)
    return attend(inputs, seen(inputs, key, value))


def written(inputs: CachedAttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Write into a pool of the writer's layout, and return its bytes: ``[pages, page_size, heads, dim]`` if ND."""
    if inputs.write_layout == "PA_NZ":
        return written_nz(inputs)
    torch.ops.npu.npu_scatter_pa_kv_cache(
        *states(inputs), inputs.key_cache, inputs.value_cache, inputs.slots.contiguous(), cache_mode="Norm"
    )
    return inputs.key_cache, inputs.value_cache


def states(inputs: CachedAttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as the operator takes them: contiguous."""
    return inputs.key.contiguous(), inputs.value.contiguous()


def written_nz(inputs: CachedAttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Write into an NZ pool ``[pages, heads * dim / 16, page_size, 16]``."""
    shape = (inputs.key_cache.shape[0], -1, inputs.page_size, STRIP)
    key, value = inputs.key_cache.view(shape), inputs.value_cache.view(shape)
    torch.ops.npu.npu_scatter_pa_kv_cache(*states(inputs), key, value, inputs.slots.contiguous(), cache_mode="PA_NZ")
    return key, value


def to_nz(inputs: CachedAttentionInputs, pages: torch.Tensor) -> torch.Tensor:
    """From ``[pages, page_size, heads, dim]`` to ``[pages, heads * dim / 16, page_size, 16]``."""
    return pages.reshape(len(pages), inputs.page_size, -1, STRIP).transpose(1, 2).contiguous()


def to_nd(inputs: CachedAttentionInputs, pages: torch.Tensor) -> torch.Tensor:
    """From ``[pages, heads * dim / 16, page_size, 16]`` to ``[pages, page_size, heads, dim]``."""
    return pages.transpose(1, 2).reshape(inputs.key_cache.shape)


def seen(inputs: CachedAttentionInputs, key: torch.Tensor, value: torch.Tensor) -> PagedKV:
    """The bytes of a pool as the reader's layout has them."""
    if inputs.read_layout == "PA_NZ":
        return as_five_axes(inputs, key, value)
    return PagedKV(key.view(inputs.key_cache.shape), value.view(inputs.value_cache.shape), inputs.block_table)


def as_five_axes(inputs: CachedAttentionInputs, key: torch.Tensor, value: torch.Tensor) -> PagedKV:
    """An NZ pool with an axis for heads: ``[pages, heads, dim / 16, page_size, 16]``."""
    shape = (inputs.key_cache.shape[0], inputs.key.shape[1], -1, inputs.page_size, STRIP)
    return PagedKV(key.view(shape), value.view(shape), inputs.block_table, "PA_NZ")


def attend(inputs: CachedAttentionInputs, pool: PagedKV) -> torch.Tensor:
    """Attention of all new tokens through FIA v2 TND."""
    call = tnd_call(
        SlidingAttentionInputs(
            query=inputs.query,
            full=pool,
            sliding=None,
            query_lengths=inputs.query_lengths,
            kv_lengths=inputs.kv_lengths,
            window=inputs.window,
            scale=inputs.scale,
            sinks=None,
        )
    )
    output, _ = call()
    return output
