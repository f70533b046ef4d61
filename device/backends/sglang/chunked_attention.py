"""Attention within chunks in sglang: layers of Llama 4 on its Ascend backend, and the metadata of local requests.

sglang takes its Ascend backend for Llama 4 where it is asked to (``arg_groups/model_hook.py``). Local requests are made
for backends of other hardware; operators of this one run on them here.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.attention.local_attention import LocalAttentionMetadataBuilder
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.ascend import sliding_attention
from npudiff.device.ascend.fused_attention import decode_call, tnd_call
from npudiff.device.backends.paged_attention import PAGE, real_rows
from npudiff.device.backends.sglang.attention_world import attention_world
from npudiff.device.backends.sglang.world import environment
from npudiff.model.constraints import Box
from npudiff.reference.chunked_attention import ChunkedAttentionInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_HERE: Box = {
    "dtype": ("bfloat16",), "head_dim": (64, 128), "group": range(1, 65), "query_length": range(1, 2**16),
    "rows": ("contiguous",),
}  # fmt: skip
_LAYER: Box = {**_HERE, "page_size": (PAGE,), "head_dim": (128,)}
_LOCAL: Box = {**_HERE, "page_size": range(16, 513, 16), "whole_pages": (True,)}
_ROW: Box = {"query_length": (1,)}

_NO_WINDOW = -1
"""``sliding_window_size`` of such a layer: it says ``use_irope`` instead."""


def _whole(inputs: ChunkedAttentionInputs) -> SlidingAttentionInputs:
    """The same batch without chunks."""
    return SlidingAttentionInputs(
        query=inputs.query, full=inputs.kv, sliding=None, query_lengths=inputs.query_lengths,
        kv_lengths=inputs.kv_lengths, window=None, scale=inputs.scale, sinks=None,
    )  # fmt: skip


def _layer(inputs: ChunkedAttentionInputs, mode: ForwardMode) -> torch.Tensor:
    """Run a layer that sees chunks."""
    batch = _whole(inputs)
    with environment({"ASCEND_USE_FIA": "1"}):
        world = attention_world(batch, mode, _NO_WINDOW, chunk=inputs.chunk)
        world.backend.init_forward_metadata(world.batch)
        forward: Any = world.backend.forward_decode if mode == ForwardMode.DECODE else world.backend.forward_extend
        answer: torch.Tensor = forward(**world.arguments)
    return real_rows(answer, batch)


@implementation("chunked_attention", name="AscendAttnBackend.forward_extend", supports=_LAYER, on_device=True)
def forward_extend(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """A layer of Llama 4, ``use_irope``, in ``AscendAttnBackend.forward_extend``."""
    return _layer(inputs, ForwardMode.EXTEND)


@implementation(
    "chunked_attention", name="AscendAttnBackend.forward_decode", supports={**_LAYER, **_ROW}, on_device=True
)
def forward_decode(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """The same in ``forward_decode``."""
    return _layer(inputs, ForwardMode.DECODE)


def _builder(inputs: ChunkedAttentionInputs) -> Any:  # noqa: ANN401 - sglang's
    return LocalAttentionMetadataBuilder(
        attention_chunk_size=inputs.chunk, page_size=inputs.kv.page_size,
        max_context_len=inputs.kv.block_table.shape[1] * inputs.kv.page_size, device=inputs.query.device,
        swa_translate=None,
    )  # fmt: skip


def _ends(inputs: ChunkedAttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rows of requests begin and end, and their lengths, int32."""
    starts = torch.tensor([0, *inputs.query_lengths], dtype=torch.int32).cumsum(dim=0).to(torch.int32)
    lengths = torch.tensor(inputs.kv_lengths, dtype=torch.int32)
    return starts.to(inputs.query.device), lengths.to(inputs.query.device)


def _local(inputs: ChunkedAttentionInputs, said: Any, requests: int | None = None) -> SlidingAttentionInputs:  # noqa: ANN401
    """The batch of local requests that metadata have, or of the first ones."""
    rows = said.local_query_start_loc.diff().tolist()[:requests]
    lengths = said.local_seqused_k.tolist()[:requests]
    pool = PagedKV(inputs.kv.key, inputs.kv.value, said.local_block_table[:requests].to(torch.int32).contiguous())
    return replace(_whole(inputs), full=pool, query_lengths=tuple(rows), kv_lengths=tuple(lengths))


@implementation("chunked_attention", name="LocalAttentionMetadataBuilder.build", supports=_LOCAL, on_device=True)
def build(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Local requests of a pass, from a table of tokens; FIA v2 TND runs on them."""
    size, table = inputs.kv.page_size, inputs.kv.block_table
    tokens = (table.unsqueeze(-1) * size + torch.arange(size, device=table.device)).flatten(1)
    starts, lengths = _ends(inputs)
    said = _builder(inputs).build(
        cu_seqlens_q=starts, cache_seqlens_int32=lengths, page_table=tokens[:, : max(inputs.kv_lengths)],
        device=table.device,
    )  # fmt: skip
    batch = _local(inputs, said)
    return sliding_attention.run_tnd(batch, tnd_call(batch))["output"]


@implementation(
    "chunked_attention", name="LocalAttentionMetadataBuilder.update_for_replay", supports={**_LOCAL, **_ROW},
    on_device=True,
)  # fmt: skip
def update_for_replay(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """The same of a graph that was captured with one token of each request; FIA v2 BSND decodes."""
    made, table = _builder(inputs), inputs.kv.block_table
    starts, lengths = _ends(inputs)
    batch, buffers = len(lengths), made.alloc_cuda_graph_buffers(len(lengths))
    said: Any = SimpleNamespace(
        cache_seqlens_int32=torch.ones_like(lengths), cu_seqlens_q=starts, page_table=table, swa_page_table=None
    )
    said.local_attn_metadata = made.build_for_capture(said, batch, buffers=buffers)
    said.cache_seqlens_int32.copy_(lengths)
    made.update_for_replay(said, batch, buffers=buffers)
    local: Any = SimpleNamespace(
        local_query_start_loc=buffers["local_query_start_loc"][: batch + 1],
        local_seqused_k=buffers["local_seqused_k"], local_block_table=buffers["local_block_table"],
    )  # fmt: skip
    decode = _local(inputs, local, batch)
    return sliding_attention.run_decode(decode, decode_call(decode))["output"]
