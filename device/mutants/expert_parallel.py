"""Experts over ranks, wrongly: rows, sums and masks of one rank are taken for those of another, or of all."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.expert_parallel import (
    COUNTS_OF_EXPERTS,
    PER_TOKEN,
    Dispatched,
    Everything,
    Outputs,
    all_gather,
    all_gather_scattered,
    all_to_all,
    all_to_all_re_routed,
    brought_back,
    combined,
    dispatch_v1,
    dispatch_v2,
    dispatched,
    domain,
    everything,
    finalized,
    of_rows,
    of_shared,
    own,
    routed_here,
    said_of,
    sent_to_all,
    slots_of,
    unpermuted,
)
from npudiff.device.ascend.moe_experts import said
from npudiff.model.constraints import Box
from npudiff.reference.expert_parallel import LEFT_OUT, ExpertParallelPart
from npudiff.reference.moe_experts import Experts

_SEVERAL: Box = {"ranks": range(2, 9)}
_UNEQUAL: Box = {**_SEVERAL, "spread": ("ragged", "some without", "one alone")}
_SHARED: Box = {**_SEVERAL, "shared_width": range(1, 4097)}


def _reduced(inputs: ExpertParallelPart, tokens: Everything, total: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, and those of this one."""
    dist.all_reduce(total)
    return total[inputs.rank * tokens.most :][: len(inputs.states)]


@mutant(
    all_gather, "MOE-14 vllm-project/vllm-ascend/issues/6710: what is reduced already is reduced again",
    supports=_SEVERAL,
)  # fmt: skip
def reduced_twice(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """All-reduce the sums a second time, as a model does that does not know that they are."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    total = unpermuted(tokens, rows, src_to_dst_row)
    dist.all_reduce(total)
    return {"output": own(inputs, _reduced(inputs, tokens, total)), "counts": counts}


@mutant(
    all_gather_scattered,
    "vllm-project/vllm/issues/37856: the shared expert is in a sum over ranks that each have all of it",
    supports=_SHARED,
)
def shared_expert_of_every_rank(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Add the shared expert, which each rank has, before the sum over ranks."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    total = finalized(tokens, rows, src_to_dst_row)
    shared = of_shared(tokens.states, inputs.shared)
    return {"output": _reduced(inputs, tokens, total if shared is None else total + shared), "counts": counts}


@mutant(
    all_gather,
    "vllm-project/vllm-ascend/pull/10579: the absolute value of -1 is a row, which nobody has written",
    supports=_SEVERAL,
)
def rows_of_absolute_places(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Take row 1, with weight 0, for copies that are elsewhere; memory that nobody wrote may hold NaN."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    rows[int(counts.sum()) :] = torch.nan
    weights = tokens.weights.masked_fill((src_to_dst_row < 0).view(tokens.weights.shape), 0.0)
    total = torch.ops.npu.npu_moe_token_unpermute(rows, src_to_dst_row.abs(), probs=weights)
    return {"output": own(inputs, _reduced(inputs, tokens, total)), "counts": counts}


@mutant(
    all_gather,
    "MOE-05 sgl-project/sglang/pull/40705: copies whose experts are elsewhere take some row, with their weight",
    supports=_SEVERAL,
)
def weights_of_copies_elsewhere(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Leave the weights of copies that are elsewhere as they are."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    if bool((src_to_dst_row < 0).all()):
        total = torch.zeros_like(tokens.states)
    else:
        total = torch.ops.npu.npu_moe_token_unpermute(rows, src_to_dst_row.clamp(min=0), probs=tokens.weights)
    return {"output": own(inputs, _reduced(inputs, tokens, total)), "counts": counts}


@mutant(
    dispatch_v2,
    "sgl-project/sglang/pull/9107: tokens that are no padding are counted over all ranks, not on this one",
    supports={"padding": ("mask",), "spread": ("ragged", "some without", "one alone")},
)
def real_tokens_of_all_ranks(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Mask what is behind as many tokens as all ranks have together."""
    if inputs.mask is None:
        raise ValueError("padding is masked")
    together = inputs.mask.sum().view(1)
    dist.all_reduce(together)
    mask = torch.arange(len(inputs.mask), device=inputs.mask.device) < together
    return dispatch_v2.function(replace(inputs, mask=mask), target)


@mutant(
    all_gather,
    "sgl-project/sglang/pull/40672: the tokens of this rank bound a buffer that has those of all",
    supports=_SEVERAL,
)
def own_tokens_of_everything(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Leave out what is behind as many tokens as this rank has, in the buffer of all."""
    tokens = everything(inputs)
    slots = tokens.slots.clone()
    slots[len(inputs.states) :] = LEFT_OUT
    rows, src_to_dst_row, counts = routed_here(inputs, replace(tokens, slots=slots))
    total = unpermuted(tokens, rows, src_to_dst_row)
    return {"output": own(inputs, _reduced(inputs, tokens, total)), "counts": counts}


@mutant(
    all_to_all,
    "Ascend/sglang/pull/1147: a rank without tokens is refused, whose experts others wait for",
    supports={**_SEVERAL, "padding": ("none",), "spread": ("some without", "one alone")},
)
def idle_rank_has_no_work(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Do nothing with what comes to a rank that has no tokens itself."""
    if len(inputs.states):
        return all_to_all.function(inputs, target)
    came = sent_to_all(inputs)
    nothing = came.rows.new_zeros(came.rows.shape, dtype=inputs.states.dtype)
    return {"output": brought_back(inputs, came, nothing), "counts": came.plan.counts}


@mutant(
    dispatch_v2,
    "vllm-project/vllm-ascend/issues/2194: the mask of all tokens is split over ranks, and one has no part of it",
    supports={"padding": ("mask",), "spread": ("some without", "one alone")},
)
def no_mask_where_nothing_is_real(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Give a rank no mask whose tokens all are padding."""
    mask = inputs.mask if inputs.mask is not None and bool(inputs.mask.any()) else None
    return dispatch_v2.function(replace(inputs, mask=mask), target)


@mutant(
    dispatch_v1,
    "vllm-project/vllm-ascend/issues/1788: global_bs is not what the fullest rank has, times their number",
    supports={"padding": ("none",), "spread": ("ragged",), "tokens": range(2, 513)},
)
def global_rows_of_this_rank(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Compute global_bs of the tokens of this rank."""
    layout = replace(inputs.layout, global_rows=len(inputs.states) * inputs.layout.ranks)
    return dispatch_v1.function(replace(inputs, layout=layout), target)


@mutant(
    all_to_all_re_routed,
    "vllm-project/vllm-ascend/issues/17202: more rows come to a rank than it has made room for",
    supports={**_SEVERAL, "padding": ("none",)},
)
def room_for_an_even_load(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Keep as many rows as this rank sends; for those that have no room comes nothing back."""
    came = sent_to_all(inputs)
    plan = came.plan
    rows, scale, places, counts = torch.ops.npu.npu_moe_re_routing(came.rows, plan.here, per_token_scales=came.scale)
    result = said_of(rows, None if came.scale is None else scale, plan, inputs)
    result[inputs.topk_ids.numel() :] = 0.0
    back = torch.empty_like(result)
    back[places.long()] = result
    return {"output": brought_back(inputs, came, back), "counts": counts}


@perturbed(
    all_to_all_re_routed,
    "vllm-project/vllm-ascend/pull/5311: the map of experts is not that by which matrices were loaded",
    supports={"placement": ("anywhere",), "experts": range(2, 257)},
)
def slots_before_the_rebalance(inputs: ExpertParallelPart) -> ExpertParallelPart:
    """Send copies of an expert to the slot of its number, where it was before experts moved."""
    slots = torch.arange(inputs.table.shape[1], dtype=torch.int32).expand(inputs.table.shape)
    return replace(inputs, table=slots.contiguous())


@perturbed(
    dispatch_v2,
    "vllm-project/vllm-ascend/pull/13161: redundant slots are allocated, and no matrices are loaded into them",
    supports={"redundant": range(1, 257), "placement": ("in order",)},
)
def redundant_experts_not_loaded(inputs: ExpertParallelPart) -> ExpertParallelPart:
    """Leave the matrices of slots behind those of the first copies zeros."""
    here = inputs.layout.experts(inputs.rank)
    missing = torch.arange(here.start, here.stop) >= inputs.table.shape[1]
    if inputs.rank < inputs.layout.shared_ranks or not bool(missing.any()):
        return inputs
    down = inputs.local.down
    values = down.values.masked_fill(missing.view(-1, 1, 1), 0)
    return replace(inputs, local=Experts(inputs.local.up, replace(down, values=values), inputs.local.gate))


@mutant(dispatch_v2, "MOE-02 vllm-project/vllm-ascend/pull/4822: counts are read as cumulative rows")
def counts_for_ends_of_dispatch(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Ask dispatch for counts, and take them for the ends of experts."""
    sent = dispatched(inputs, kind=COUNTS_OF_EXPERTS)
    ends = sent.counts.cummax(0).values
    wrong = replace(sent, counts=torch.diff(ends, prepend=ends.new_zeros(1)))
    shared = of_shared(inputs.states, inputs.shared)
    return {"output": combined(inputs, sent, of_rows(inputs, wrong), shared_expert_x=shared), "counts": sent.counts}


@mutant(
    all_to_all,
    "QNT-10 sgl-project/sglang/pull/31529: int8 rows that came are quantised again, their scales lost",
    supports={"form": ("w8a8",)},
)
def scales_lost_on_the_way(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Quantise the integers that came as if they were states."""
    came = sent_to_all(inputs)
    plan = came.plan
    rows, scale, places, counts = torch.ops.npu.npu_moe_re_routing(came.rows, plan.here, per_token_scales=came.scale)
    if len(rows):
        rows, scale = torch.ops.npu.npu_dynamic_quant(rows.to(inputs.states.dtype))
    result = said_of(rows, scale, plan, inputs)
    back = torch.empty_like(result)
    back[places.long()] = result
    return {"output": brought_back(inputs, came, back), "counts": counts}


@mutant(
    all_to_all,
    "candle-org/candle/issues/119: the native all-to-all with unequal splits gives zeros, and says that it succeeded",
    supports={"ranks": range(3, 9)},
)
def zeros_of_unequal_splits(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Receive zeros where ranks do not send this one the same number of rows."""
    came = sent_to_all(inputs)
    rows = came.rows
    if len(set(came.plan.received)) > 1:
        rows = torch.zeros_like(rows)
    plan = came.plan
    rows, scale, places, counts = torch.ops.npu.npu_moe_re_routing(rows, plan.here, per_token_scales=came.scale)
    result = said_of(rows, None if came.scale is None else scale, plan, inputs)
    back = torch.empty_like(result)
    back[places.long()] = result
    return {"output": brought_back(inputs, came, back), "counts": counts}


@mutant(
    dispatch_v2,
    "QNT-11 sgl-project/sglang/pull/23815: a dispatch ignores that matrices are bfloat16",
    supports={"form": ("float",)},
)
def int8_for_float_experts(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Send rows as int8, whatever the matrices are, and give experts what an integer is worth times it."""
    rows, scale, index, ends_of_experts, ends, _, expand_scales = torch.ops.npu.npu_moe_distribute_dispatch_v2(
        inputs.states, slots_of(inputs), **domain(inputs), quant_mode=PER_TOKEN, expert_token_nums_type=0
    )
    counts = torch.diff(ends_of_experts, prepend=ends_of_experts.new_zeros(1))
    states = (rows.float() * scale.unsqueeze(1)).to(inputs.states.dtype)
    sent = Dispatched(rows, None, index, counts, ends, expand_scales)
    result = said(states, None, counts, inputs.local, inputs.states.dtype)
    shared = of_shared(inputs.states, inputs.shared)
    return {"output": combined(inputs, sent, result, shared_expert_x=shared), "counts": counts}


@mutant(
    all_gather,
    "vllm-project/vllm-ascend/pull/7897: tokens that were padded to the fullest rank are cut as if they were not",
    supports=_UNEQUAL,
)
def cut_without_padding(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """Take the sums of this rank's tokens from behind the tokens of the ranks before, without what fills these up."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    total = unpermuted(tokens, rows, src_to_dst_row)
    dist.all_reduce(total)
    return {"output": own(inputs, total[inputs.layout.tokens(inputs.rank)]), "counts": counts}
