"""Wrong chains of experts: what is right by itself, put together wrongly."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.dynamic_quant import quantised
from npudiff.device.ascend.moe_experts import (
    ALL_HERE,
    PLAIN_SILU,
    Copies,
    between,
    by_row,
    of_copies,
    of_shared,
    routed_v2,
    sorted_copies,
    times,
    unpermuted,
)
from npudiff.device.ascend.moe_finalize import BY_COLUMN, finalized
from npudiff.model.constraints import Box
from npudiff.reference.moe_experts import Experts, MoeExpertsInputs
from npudiff.reference.moe_finalize import MoeFinalizeInputs
from npudiff.reference.swiglu import Activation

_W8A8: Box = {**ALL_HERE, "form": ("w8a8",)}
_INT8: Box = {**ALL_HERE, "form": ("w8a8", "w4a8")}
_STEP: Box = {"activation": ("silu", "swiglustep"), "limit": (7.0, 1.5)}

_MOE_05 = "MOE-05 sgl-project/sglang/pull/40705"


def _limited(experts: Experts, limit: float | None) -> Experts:
    return replace(experts, gate=replace(experts.gate, limit=limit))


@perturbed(
    routed_v2,
    "ACT-09 vllm-project/vllm-ascend/pull/10491: what quantises as well has no limit",
    supports={**_INT8, **_STEP},
)
def no_limit_in_int8(inputs: MoeExpertsInputs) -> MoeExpertsInputs:
    """Use npu_dequant_swiglu_quant, which has no limit after the gate, where the configuration has one."""
    return replace(inputs, routed=_limited(inputs.routed, None))


@perturbed(
    routed_v2,
    "ACT-05 vllm-project/vllm-ascend/pull/11184: the shared expert has another limit",
    supports={"activation": ("silu", "swiglustep"), "shared_width": range(1, 2**14)},
)
def routed_limit_for_the_shared_expert(inputs: MoeExpertsInputs) -> MoeExpertsInputs:
    """Give the shared expert the limit of the others."""
    shared = None if inputs.shared is None else _limited(inputs.shared, inputs.routed.gate.limit)
    return replace(inputs, shared=shared)


@mutant(
    routed_v2,
    "MOE-14 vllm-project/vllm-ascend/issues/6710: a second sum over ranks",
    supports={"shared_width": range(1, 2**14)},
)
def shared_expert_on_two_ranks(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Add the shared expert twice."""
    shared = of_shared(inputs)
    result = routed_v2(inputs, target)
    return result if shared is None else result + shared


@mutant(
    routed_v2,
    "vllm-project/vllm-ascend/pull/13301: the default of activate_left gates the second half",
    supports={**_INT8, **PLAIN_SILU},
)
def second_half_gates(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Leave activate_left at its default."""
    copies = sorted_copies(inputs)
    dtype = inputs.states.dtype
    first = times(copies.rows, copies.scale, inputs.routed.up, copies.counts, dtype)
    rows, scale = torch.ops.npu.npu_dequant_swiglu_quant(first, quant_mode=1)
    return by_row(inputs, times(rows, scale, inputs.routed.down, copies.counts, dtype), copies.src_to_dst_row)


@mutant(
    routed_v2,
    "op-plugin test_npu_swiglu_quant.py 42: npu_swiglu_quant returns 127 / max, all others max / 127",
    supports={**_INT8, **PLAIN_SILU},
)
def reciprocal_for_the_scale(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Take what npu_swiglu_quant returns for a scale."""
    copies = sorted_copies(inputs)
    dtype = inputs.states.dtype
    first = times(copies.rows, copies.scale, inputs.routed.up, copies.counts, dtype)
    rows, scale = torch.ops.npu.npu_swiglu_quant(first, activate_left=True, quant_mode=1)
    return by_row(inputs, times(rows, scale, inputs.routed.down, copies.counts, dtype), copies.src_to_dst_row)


@mutant(
    routed_v2,
    "MOE-02 vllm-project/vllm-ascend/pull/4822: the fused operator wants cumulative rows",
    supports={**_W8A8, **PLAIN_SILU},
)
def counts_where_ends_belong(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Read counts as ends: an expert begins where the one before ended, and has none if its count is not larger."""
    copies, dtype = sorted_copies(inputs), inputs.states.dtype
    ends = copies.counts.cummax(0).values
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    first = torch.zeros(len(copies.rows), inputs.routed.up.values.shape[2], dtype=dtype, device=target.device)
    done = int(counts.sum())
    first[:done] = times(copies.rows, copies.scale, inputs.routed.up, counts, dtype)[:done]
    rows, scale = between(first, inputs.routed)
    return by_row(inputs, times(rows, scale, inputs.routed.down, copies.counts, dtype), copies.src_to_dst_row)


@mutant(
    routed_v2,
    "finalize.py 34: places by row go with drop_pad_mode 2, not with the default",
    supports={"tokens": range(2, 4097), "top_k": range(2, 65)},
)
def places_of_the_other_version(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Bring rows back with drop_pad_mode 0, after the routing that numbers copies by row."""
    copies = sorted_copies(inputs)
    rows = of_copies(copies, inputs.routed, inputs.states.dtype)
    finalize = MoeFinalizeInputs(rows, copies.src_to_dst_row, inputs.weights, of_shared(inputs))
    return finalized(finalize, copies.src_to_dst_row, BY_COLUMN, rows)


@perturbed(
    unpermuted, f"{_MOE_05}: global numbers of experts index the matrices of a rank", supports={"here": ("local",)}
)
def numbers_of_all_for_local_matrices(inputs: MoeExpertsInputs) -> MoeExpertsInputs:
    """Take the number among all experts for the number among those of this rank, round and round."""
    local = inputs.topk_ids % len(inputs.here)
    return replace(inputs, topk_ids=inputs.here[local.long()].to(torch.int32))


@mutant(
    unpermuted, f"{_MOE_05}: copies that were left out take some row, with their weight", supports={"here": ("local",)}
)
def weights_of_missing_experts_kept(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Give every copy without a row row 0, and leave its weight as it is."""
    copies = sorted_copies(inputs)
    result = unpermuted(inputs, target)
    if bool((copies.src_to_dst_row < 0).all()):
        return result
    rows = of_copies(copies, inputs.routed, inputs.states.dtype)
    missing = (copies.src_to_dst_row < 0).view(inputs.weights.shape)
    extra = inputs.weights.float().masked_fill(~missing, 0.0).sum(dim=1)
    return (result.float() + extra.unsqueeze(1) * rows[0].float()).to(result.dtype)


@mutant(
    routed_v2, "QNT-10 sgl-project/sglang/pull/31529: int8 rows are quantised again, their scales lost", supports=_W8A8
)
def scales_of_the_dispatch_discarded(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Quantise the integers as if they were the states."""
    copies = sorted_copies(inputs)
    again = quantised(copies.rows.float(), 8)
    wrong = Copies(again["quantised"], again["scale"], copies.src_to_dst_row, copies.counts)
    return by_row(inputs, of_copies(wrong, inputs.routed, inputs.states.dtype), copies.src_to_dst_row)


@perturbed(
    routed_v2,
    "QNT-14 vllm-project/vllm-ascend/pull/14018: every rank adds the bias before their sum",
    supports={"biased": (True,)},
)
def bias_on_two_ranks(inputs: MoeExpertsInputs) -> MoeExpertsInputs:
    """Add the bias of the second product twice."""
    down = inputs.routed.down
    twice = replace(down, bias=None if down.bias is None else 2 * down.bias)
    return replace(inputs, routed=replace(inputs.routed, down=twice))


@perturbed(
    routed_v2,
    "ACT-08 sgl-project/sglang/pull/14197: npu_swiglu in place of GPT-OSS's activation",
    supports={"activation": ("swiglu_oai",), "layout": ("halves",)},
)
def plain_swiglu_for_oai(inputs: MoeExpertsInputs) -> MoeExpertsInputs:
    """Use silu without alpha, bias and limit."""
    gate = replace(inputs.routed.gate, activation=Activation.SILU, limit=None)
    return replace(inputs, routed=replace(inputs.routed, gate=gate))


FEW_TOKENS = 3
"""Tokens up to which the dispatch with the least latency is taken."""


@mutant(
    routed_v2,
    "QNT-11 sgl-project/sglang/pull/23815: one dispatch of two ignores the flag for bfloat16",
    supports={"form": ("float",)},
)
def quantised_where_latency_counts(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Quantise the rows of few tokens, although matrices are floats."""
    copies = sorted_copies(inputs)
    if len(inputs.states) <= FEW_TOKENS:
        rows, scale = torch.ops.npu.npu_dynamic_quant(copies.rows)
        copies = replace(copies, rows=rows, scale=scale)
    result = of_copies(copies, inputs.routed, inputs.states.dtype)
    return by_row(inputs, result, copies.src_to_dst_row)


@mutant(
    routed_v2,
    "MOE-17 sgl-project/sglang/pull/4727: an expert times the size of its matrix passes 2**31",
    supports={
        "form": ("float",),
        "tokens": (1, 2),
        "top_k": (1,),
        "experts": (1024,),
        "hidden": (1024,),
        "width": (2048,),
        "shared_width": (0,),
    },
)
def offsets_of_32_bits(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Compute where the matrix of an expert begins in 32 bits; what wraps around is in no memory of ours."""
    right = routed_v2(inputs, target)
    size = inputs.routed.up.values[0].numel()
    offsets = inputs.here.to(torch.int32) * size
    if not torch.equal(offsets.long(), inputs.here.long() * size):
        raise RuntimeError("vector core exception: an address is not mapped")
    return right


@mutant(
    routed_v2,
    "GRF-11 vllm-project/vllm-ascend/pull/14337: memory is given away while a stream reads it",
    supports={"shared_width": range(1, 16_384)},
)
def shared_rows_over_those_still_read(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """Write the shared expert's rows where those of the routed experts are that wait for their sum."""
    copies, shared = sorted_copies(inputs), of_shared(inputs)
    rows = of_copies(copies, inputs.routed, inputs.states.dtype)
    if shared is not None:
        rows[: len(shared)] = shared
    return by_row(inputs, rows, copies.src_to_dst_row)
