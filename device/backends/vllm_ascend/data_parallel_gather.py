"""vllm-ascend's tokens of data-parallel ranks: both ways of ``PrepareAndFinalizeWithAllGather``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from vllm_ascend.ops import register_custom_ops
from vllm_ascend.ops.fused_moe import prepare_finalize

from npudiff import Target, implementation
from npudiff.device.ascend.data_parallel_gather import (
    attention_group,
    data_group,
    group_of,
    in_slices,
    outputs_of,
    own_part,
    padded_to,
    summed_in_group,
    whole_of_group,
)
from npudiff.device.backends.rank_group import RankGroup
from npudiff.device.backends.vllm_ascend.rank_world import groups_of
from npudiff.reference.data_parallel_gather import DataParallelPart

Outputs = dict[str, torch.Tensor]
FLOATS = {"mode": ("maximum", "sum"), "dtype": ("bfloat16", "float16", "float32")}


@implementation("data_parallel_gather", name="PrepareAndFinalizeWithAllGather", supports=FLOATS, on_device=True)
def over_data_ranks(inputs: DataParallelPart, target: Target) -> Outputs:
    """_prepare_with_dp_group and _finalize_with_dp_group, and the all-reduce over the group behind them."""
    count = inputs.counts[group_of(inputs)]
    own = summed_in_group(inputs, inputs.states[:count])
    group = RankGroup(data_group(inputs), "dp:0")
    steps: Any = object.__new__(prepare_finalize.PrepareAndFinalizeWithAllGather)
    steps.moe_config = SimpleNamespace(dp_size=len(inputs.counts), pcp_size=1, dp_group=group)
    context = SimpleNamespace(max_tokens_across_dp=max(inputs.counts))
    with groups_of(prepare_finalize, {"get_dp_group": group}, _EXTRA_CTX=context):
        sent = steps._prepare_with_dp_group(own, own[:, :1].contiguous())
        rows = steps._finalize_with_dp_group(own_part(inputs, sent.hidden_states), reduce_results=False)
    rows = rows.contiguous()
    if inputs.attention_ranks > 1:
        dist.all_reduce(rows, group=attention_group(inputs))
    return outputs_of(inputs, padded_to(rows, len(inputs.states)))


@implementation("data_parallel_gather", name="maybe_all_gather_and_maybe_unpad", supports=FLOATS, on_device=True)
def over_expert_ranks(inputs: DataParallelPart, target: Target) -> Outputs:
    """maybe_all_gather_and_maybe_unpad and maybe_pad_and_reduce, with sequence parallelism in each group."""
    count, most = inputs.counts[group_of(inputs)], max(inputs.counts)
    length = -(-most // inputs.attention_ranks) * inputs.attention_ranks
    slices = in_slices(inputs, padded_to(inputs.states[:count], length), leader=inputs.replicated)
    # As without a runner that says how sequence parallelism cuts tokens: chunk sizes are unknown then.
    metadata = SimpleNamespace(num_tokens_across_dp_cpu=torch.tensor(inputs.counts))
    context = SimpleNamespace(dp_metadata=metadata)
    extra = SimpleNamespace(padded_length=length, is_draft_model=False)
    groups = {"get_ep_group": RankGroup(name="ep:0"), "get_dp_group": RankGroup(data_group(inputs), "dp:0")}
    with groups_of(register_custom_ops, groups, _EXTRA_CTX=extra, get_forward_context=lambda: context):
        every = register_custom_ops._maybe_all_gather_and_maybe_unpad_impl(slices)
        own = register_custom_ops._maybe_pad_and_reduce_impl(own_part(inputs, every))
    rows = whole_of_group(inputs, own)[:count]
    return outputs_of(inputs, padded_to(rows, len(inputs.states)))
