"""Attention of sglang that writes its new keys and values itself, and then finds them in the pool."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE, real_rows
from npudiff.device.backends.sglang.attention_world import AttentionWorld, attention_world
from npudiff.model.constraints import Box
from npudiff.reference.cached_attention import CachedAttentionInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_POOL: Box = {
    "page_size": (PAGE,), "group": range(1, 65), "head_dim": (64, 128), "write_layout": ("PA_BSND",),
    "read_layout": ("PA_BSND",),
}  # fmt: skip
"""A window comes with a pool of its own; ``sliding_attention`` says which convention it has."""


def _world(inputs: CachedAttentionInputs, mode: ForwardMode, window_size: int) -> AttentionWorld:
    """Build a world whose pool has the tokens that earlier passes wrote."""
    pool = PagedKV(inputs.key_cache, inputs.value_cache, inputs.block_table)
    attention = SlidingAttentionInputs(
        query=inputs.query, full=pool, sliding=None if inputs.window is None else pool, window=inputs.window,
        query_lengths=inputs.query_lengths, kv_lengths=inputs.kv_lengths, scale=inputs.scale, sinks=None,
    )  # fmt: skip
    world = attention_world(attention, mode, -1 if inputs.window is None else window_size)
    requests, length = world.backend.req_to_token_pool.req_to_token, enumerate(inputs.kv_lengths, 1)
    slots = torch.cat([requests[row, :kv] for row, kv in length]).long()
    written = _tokens(inputs, new=False)
    world.write(slots[written], inputs.key[written], inputs.value[written])
    world.backend.init_forward_metadata(world.batch)
    return world


def _tokens(inputs: CachedAttentionInputs, *, new: bool) -> torch.Tensor:
    """Rows of keys and values that are new, or that earlier passes wrote, int64 on the device."""
    rows, first = list[int](), 0
    for query, kv in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        rows += range(first + kv - query, first + kv) if new else range(first, first + kv - query)
        first += kv
    return torch.tensor(rows, dtype=torch.int64, device=inputs.key.device)


def _saving(world: AttentionWorld, inputs: CachedAttentionInputs) -> dict[str, Any]:
    """Arguments of a pass that saves the new keys and values, which are all of a prompt, or rows of it."""
    new = _tokens(inputs, new=True)
    whole = len(new) == len(inputs.key)
    states = {"k": inputs.key, "v": inputs.value} if whole else {"k": inputs.key[new], "v": inputs.value[new]}
    return {**world.arguments, **states, "save_kv_cache": True}


@implementation("cached_attention", name="forward_extend", supports=_POOL, on_device=True)
def forward_extend(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend with save_kv_cache, where a window does not count the query's own key."""
    world = _world(inputs, ForwardMode.EXTEND, (inputs.window or 0) - 1)
    return real_rows(world.backend.forward_extend(**_saving(world, inputs)), world.inputs)


@implementation("cached_attention", name="forward_decode", supports={**_POOL, "query_length": (1,)}, on_device=True)
def forward_decode(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode with save_kv_cache, where a window counts the query's own key."""
    world = _world(inputs, ForwardMode.DECODE, inputs.window or 0)
    return real_rows(world.backend.forward_decode(**_saving(world, inputs)), world.inputs)
