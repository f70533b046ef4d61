"""Experts as Ascend backends run them: sort copies, multiply in groups, activate, multiply, bring back together.

Sources: sglang 0.5.23, ``hardware_backend/npu/moe`` and ``quantization/fused_moe_method_npu.py``; vllm-ascend's
``ops/fused_moe`` for the fused forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff import Target, implementation
from npudiff.device.ascend import grouped_matmul, swiglu
from npudiff.device.ascend.dynamic_quant import quantised
from npudiff.device.ascend.moe_finalize import BY_COLUMN, BY_ROW, finalized
from npudiff.device.ascend.moe_routing import COUNTS, by_column, first, second
from npudiff.device.ascend.packed_weights import assist_matrix, bits_of, words
from npudiff.model.constraints import Box
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.grouped_matmul import GroupedMatmulInputs
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs
from npudiff.reference.moe_finalize import MoeFinalizeInputs
from npudiff.reference.moe_routing import MoeRoutingInputs
from npudiff.reference.swiglu import Activation, SwigluInputs

ALL_HERE: Box = {"here": ("all", "chosen")}
QUANTISED: Box = {"form": ("w8a8", "w4a8")}
PLAIN_SILU: Box = {"activation": ("silu", "swiglustep"), "limit": (None,)}


@dataclass(frozen=True)
class Copies:
    """Copies of tokens sorted by expert, and what belongs to them."""

    rows: torch.Tensor
    """``[tokens * k, hidden]``: int8 where weights are; rows behind the last group hold anything."""
    scale: torch.Tensor | None
    """float32 ``[tokens * k]`` of int8 rows."""
    src_to_dst_row: torch.Tensor
    """int32 ``[tokens * k]``: the row of each copy, -1 for one whose expert is not here."""
    counts: torch.Tensor
    """int64 ``[experts that are here]``."""


def numbered_here(inputs: MoeExpertsInputs) -> torch.Tensor:
    """Numbers of the chosen experts among those that are here, int32; one more for those that are not."""
    found = torch.searchsorted(inputs.here, inputs.topk_ids.long())
    known = inputs.here[found.clamp(max=len(inputs.here) - 1)] == inputs.topk_ids
    return torch.where(known, found, len(inputs.here)).to(torch.int32)


def sorted_copies(inputs: MoeExpertsInputs) -> Copies:
    """npu_moe_init_routing_v2, which also quantises rows where weights are integers."""
    experts = len(inputs.here)
    form = "by largest" if inputs.routed.quantised else "as they are"
    request = MoeRoutingInputs(inputs.states, numbered_here(inputs), experts + 1, 0, experts, form)
    rows, src_to_dst_row, counts, scale = second(request, COUNTS)
    return Copies(rows, scale if inputs.routed.quantised else None, src_to_dst_row, counts)


def times(rows: torch.Tensor, scale: torch.Tensor | None, weights: ExpertWeights, counts: torch.Tensor,
          dtype: torch.dtype) -> torch.Tensor:  # fmt: skip
    """npu_grouped_matmul on rows of as many groups."""
    return grouped_matmul.by_form(GroupedMatmulInputs(rows, weights, counts, "counts", scale, dtype))


def activated(rows: torch.Tensor, gate: Gate) -> torch.Tensor:
    """Gates and ups as the configuration says: by an operator where there is one, else composed."""
    if gate.activation is Activation.SWIGLU_OAI and gate.limit is not None:
        return swiglu.clipped(_gated(rows, gate))
    if gate.activation is not Activation.SWIGLU_OAI and gate.limit is None and gate.layout == "halves":
        return swiglu.plain(rows, gate.activation)
    return swiglu.composed(_gated(rows, gate))


def _gated(rows: torch.Tensor, gate: Gate) -> SwigluInputs:
    return SwigluInputs(rows, gate.activation, gate.limit, None, False, gate.alpha, gate.bias, gate.layout)


def between(rows: torch.Tensor, experts: Experts) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows between the products, and their scales where weights are integers.

    npu_dequant_swiglu_quant has no limit after the gate, so what has one is composed and quantised by itself.
    """
    if not experts.quantised:
        return activated(rows, experts.gate), None
    gate = experts.gate
    silu = gate.activation in (Activation.SILU, Activation.SWIGLUSTEP)
    if silu and gate.limit is None and gate.layout == "halves":
        return torch.ops.npu.npu_dequant_swiglu_quant(  # type: ignore[no-any-return]
            rows, activate_left=True, quant_mode=1
        )
    return torch.ops.npu.npu_dynamic_quant(activated(rows, gate))  # type: ignore[no-any-return]


def of_copies(copies: Copies, experts: Experts, dtype: torch.dtype) -> torch.Tensor:
    """What the expert of each copy says, ``[tokens * k, hidden]``."""
    return said(copies.rows, copies.scale, copies.counts, experts, dtype)


def said(
    rows: torch.Tensor, scale: torch.Tensor | None, counts: torch.Tensor, experts: Experts, dtype: torch.dtype
) -> torch.Tensor:
    """What experts say of as many rows each."""
    rows, scale = between(times(rows, scale, experts.up, counts, dtype), experts)
    return times(rows, scale, experts.down, counts, dtype)


def of_shared(inputs: MoeExpertsInputs) -> torch.Tensor | None:
    """What the shared expert says of every token: one group of all rows."""
    if inputs.shared is None:
        return None
    counts = torch.tensor([len(inputs.states)], device=inputs.states.device)
    rows: torch.Tensor = inputs.states
    scale = None
    if inputs.shared.quantised:
        rows, scale = torch.ops.npu.npu_dynamic_quant(inputs.states.contiguous())
    return said(rows, scale, counts, inputs.shared, inputs.states.dtype)


def by_row(inputs: MoeExpertsInputs, rows: torch.Tensor, src_to_dst_row: torch.Tensor) -> torch.Tensor:
    """npu_moe_finalize_routing with drop_pad_mode 2, which takes places by row and skips none."""
    return finalized(
        MoeFinalizeInputs(rows, src_to_dst_row, inputs.weights, of_shared(inputs)), src_to_dst_row, BY_ROW, rows
    )


@implementation("moe_experts", supports=ALL_HERE, on_device=True)
def routed_v2(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """npu_moe_init_routing_v2, npu_grouped_matmul twice, npu_moe_finalize_routing."""
    copies = sorted_copies(inputs)
    rows = of_copies(copies, inputs.routed, inputs.states.dtype)
    return by_row(inputs, rows, copies.src_to_dst_row)


@implementation("moe_experts", on_device=True)
def unpermuted(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """npu_moe_token_unpermute at the end: copies of experts that are not here take row 0, with weight 0."""
    copies = sorted_copies(inputs)
    shared = of_shared(inputs)
    missing = copies.src_to_dst_row < 0
    if bool(missing.all()):  # there is no row 0 then
        total = torch.zeros_like(inputs.states)
    else:
        rows = of_copies(copies, inputs.routed, inputs.states.dtype)
        weights = inputs.weights.masked_fill(missing.view(inputs.weights.shape), 0.0)
        total = torch.ops.npu.npu_moe_token_unpermute(rows, copies.src_to_dst_row.clamp(min=0), probs=weights)
    return total if shared is None else total + shared


@implementation("moe_experts", supports={**ALL_HERE, **QUANTISED, **PLAIN_SILU}, on_device=True)
def swiglu_in_the_product(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul_swiglu_quant, which wants cumulative rows of groups, in place of three operators."""
    copies, up = sorted_copies(inputs), inputs.routed.up
    if up.scale is None:
        raise ValueError("integers have scales")
    is_int4 = up.bits == 4
    rows, scale, _ = torch.ops.npu.npu_grouped_matmul_swiglu_quant(
        copies.rows,
        words(up.values) if is_int4 else up.values,
        copies.counts.cumsum(0),
        bits_of(up.scale) if is_int4 else up.scale.squeeze(1),
        copies.scale,
        bias=assist_matrix(up) if is_int4 else None,
    )
    result = times(rows, scale, inputs.routed.down, copies.counts, inputs.states.dtype)
    return by_row(inputs, result, copies.src_to_dst_row)


@implementation("moe_experts", supports={**ALL_HERE, "form": ("w8a8",), "dtype": ("bfloat16",)}, on_device=True)
def sum_in_the_product(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul_finalize_routing, which adds weighted rows to those of their tokens."""
    copies, down = sorted_copies(inputs), inputs.routed.down
    tokens, k = inputs.topk_ids.shape
    first = times(copies.rows, copies.scale, inputs.routed.up, copies.counts, inputs.states.dtype)
    rows, scale = between(first, inputs.routed)
    order = torch.argsort(copies.src_to_dst_row)
    if down.scale is None:
        raise ValueError("integers have scales")
    total = torch.ops.npu.npu_grouped_matmul_finalize_routing(
        rows,
        down.values,
        copies.counts,
        scale=down.scale.squeeze(1),
        pertoken_scale=scale,
        shared_input=of_shared(inputs),
        logit=inputs.weights.float().flatten()[order],
        row_index=order // k,
        output_bs=tokens,
    )
    return total.to(inputs.states.dtype)  # type: ignore[no-any-return]


@implementation("moe_experts", supports={**ALL_HERE, "form": ("float", "w8a8")}, on_device=True)
def routed_v1(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """npu_moe_init_routing, with cumulative rows of groups, copies numbered by column, and drop_pad_mode 0."""
    experts = len(inputs.here)
    request = MoeRoutingInputs(inputs.states.contiguous(), numbered_here(inputs), experts, 0, experts)
    rows, src_to_dst_row, sorted_experts = first(request, by_column(request))
    ends = torch.ops.npu.npu_moe_compute_expert_tokens(sorted_experts, experts).long()
    scale = None
    if inputs.routed.quantised:
        rows, scale = torch.ops.npu.npu_dynamic_quant(rows)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    result = of_copies(Copies(rows, scale, src_to_dst_row, counts), inputs.routed, inputs.states.dtype)
    finalize = MoeFinalizeInputs(result, src_to_dst_row, inputs.weights, of_shared(inputs))
    return finalized(finalize, src_to_dst_row, BY_COLUMN, result)


@implementation("moe_experts", on_device=True)
def expert_by_expert_composed(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """A loop over experts, composed of plain operators; whole numbers are summed as such."""
    total = torch.zeros(inputs.states.shape, dtype=torch.float32, device=inputs.states.device)
    for index, expert in enumerate(inputs.here.tolist()):
        tokens, src_to_dst_row = (inputs.topk_ids == expert).nonzero(as_tuple=True)
        if len(tokens):
            rows = alone(inputs.states[tokens], inputs.routed, index).float()
            total.index_add_(0, tokens, rows * inputs.weights[tokens, src_to_dst_row].float().unsqueeze(1))
    if inputs.shared is not None:
        total += alone(inputs.states, inputs.shared, 0).float()
    return total.to(inputs.states.dtype)


def alone(states: torch.Tensor, experts: Experts, index: int) -> torch.Tensor:
    """What one expert says of rows."""
    gates = plainly(states, experts.up, index)
    return plainly(swiglu.composed(_gated(gates, experts.gate)), experts.down, index)


def plainly(states: torch.Tensor, weights: ExpertWeights, index: int) -> torch.Tensor:
    """Rows times one matrix; of whole numbers the sums of each scale, times what they are worth."""
    matrix, bias = weights.values[index], 0.0 if weights.bias is None else weights.bias[index].float()
    if weights.scale is None:
        return (states.float() @ matrix.float() + bias).to(states.dtype)
    whole, scale = quantised(states.float(), 8), weights.scale[index].float()
    rows = torch.unflatten(whole["quantised"], 1, (len(scale), -1)).transpose(0, 1)
    sums = grouped_matmul.whole_sums(rows, torch.unflatten(matrix, 0, (len(scale), -1))).float() * scale.unsqueeze(1)
    return (sums.sum(dim=0) * whole["scale"].unsqueeze(1) + bias).to(states.dtype)
