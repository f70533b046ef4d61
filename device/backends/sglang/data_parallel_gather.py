"""sglang's tokens of data-parallel ranks: gather, scatter and real rows of ``layers/dp_attention.py``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers import dp_attention
from sglang.srt.layers.dp_attention import DpPaddingMode
from sglang.srt.model_executor.forward_batch_info import compute_local_num_token_non_padded

from npudiff import Target, implementation
from npudiff.device.ascend.data_parallel_gather import attention_group, group_of, own_part, place_of
from npudiff.device.backends.sglang.rank_world import all_ranks
from npudiff.reference.data_parallel_gather import DataParallelPart

Outputs = dict[str, torch.Tensor]

UNWRITTEN = 12_345
"""What buffers hold that sglang allocates without writing."""


def _batch(inputs: DataParallelPart) -> Any:  # noqa: ANN401 - what sglang reads of its batch
    counts = list(inputs.counts) if inputs.mode == "sum" else list(inputs.lengths)
    mode = DpPaddingMode.SUM_LEN if inputs.mode == "sum" else DpPaddingMode.MAX_LEN
    return SimpleNamespace(
        dp_local_start_pos=None, dp_local_num_tokens=None, dp_padding_mode=mode, global_num_tokens_cpu=counts,
        global_num_tokens_gpu=torch.tensor(counts, device=inputs.states.device),
    )  # fmt: skip


def _real(inputs: DataParallelPart) -> torch.Tensor:
    count = torch.tensor(inputs.counts[group_of(inputs)], dtype=torch.int32, device=inputs.states.device)
    real: torch.Tensor = compute_local_num_token_non_padded(
        count, inputs.lengths[group_of(inputs)], sharded=inputs.mode == "chunks"
    )
    return real.view(1)


def _gathered(inputs: DataParallelPart, batch: Any) -> torch.Tensor:  # noqa: ANN401
    """Gather a copy: sglang zeroes what it is given on all ranks of a group but the first."""
    rows = sum(batch.global_num_tokens_cpu)
    every = torch.full_like(inputs.states[:1].new_empty(rows, inputs.states.shape[1]), UNWRITTEN)
    gather = dp_attention.dp_gather_replicate if inputs.replicated else dp_attention.dp_gather_partial
    gather(every, inputs.states.clone(), batch)
    return every


@implementation(
    "data_parallel_gather", name="dp_gather_dp_scatter", supports={"mode": ("sum", "maximum")}, on_device=True
)
def scattered(inputs: DataParallelPart, target: Target) -> Outputs:
    """dp_gather_replicate or dp_gather_partial, an all-reduce, and dp_scatter."""
    attention = attention_group(inputs) if inputs.attention_ranks > 1 else None
    with all_ranks(attention, inputs.attention_ranks) as group:
        batch = _batch(inputs)
        result = group.all_reduce(own_part(inputs, _gathered(inputs, batch)))
        own = torch.full_like(inputs.states, UNWRITTEN)
        dp_attention.dp_scatter(own, result, batch)
        return {"output": own, "real": _real(inputs)}


@implementation(
    "data_parallel_gather", name="dp_reduce_scatter_tensor", supports={"mode": ("maximum",)}, on_device=True
)
def reduce_scattered(inputs: DataParallelPart, target: Target) -> Outputs:
    """The same gather, and dp_reduce_scatter_tensor."""
    attention = attention_group(inputs) if inputs.attention_ranks > 1 else None
    with all_ranks(attention, inputs.attention_ranks):
        result = own_part(inputs, _gathered(inputs, _batch(inputs)))
        own = torch.full_like(inputs.states, UNWRITTEN)
        dp_attention.dp_reduce_scatter_tensor(own, result)
        return {"output": own, "real": _real(inputs)}


@implementation("data_parallel_gather", name="attn_tp_reduce_scatter", supports={"mode": ("chunks",)}, on_device=True)
def chunked(inputs: DataParallelPart, target: Target) -> Outputs:
    """compute_local_num_token_non_padded, and the reduce-scatter and all-gather of a group's ranks."""
    attention = attention_group(inputs) if inputs.attention_ranks > 1 else None
    with all_ranks(attention, inputs.attention_ranks):
        real = _real(inputs)
        chunk = len(inputs.states) // inputs.attention_ranks
        own = inputs.states[place_of(inputs) * chunk :][:chunk].clone()
        if not inputs.replicated:
            dp_attention.attn_tp_reduce_scatter_tensor(own, inputs.states.clone())
        own[int(real) :] = 0
        terms = own.unsqueeze(0) * inputs.factors.unsqueeze(1)
        result = terms.sum(dim=0, dtype=own.dtype)
        every = torch.full_like(inputs.states, UNWRITTEN)
        if inputs.attention_ranks > 1:
            dp_attention.attn_tp_all_gather_into_tensor(every, result)
        return {"output": every if inputs.attention_ranks > 1 else result, "real": real}
