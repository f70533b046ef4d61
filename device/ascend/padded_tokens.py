"""Padded batches among experts as sglang's Ascend backend treats them: padded rows lose their weights and nothing else.

Source: sglang 0.5.23, ``hardware_backend/npu/moe/topk.py`` 144-146 (weights are overwritten, experts stay),
``model_executor/forward_batch_info.py`` 358-397 (how many rows of a chunk are real), and the ways of ``moe_routing``
and ``moe_finalize``.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend import moe_routing as routing
from npudiff.device.ascend.moe_finalize import BY_COLUMN, BY_ROW, finalized, together
from npudiff.reference.moe_finalize import MoeFinalizeInputs
from npudiff.reference.moe_routing import MoeRoutingInputs
from npudiff.reference.padded_tokens import PaddedTokensInputs

Outputs = dict[str, torch.Tensor]


def real_of_chunks(inputs: PaddedTokensInputs, totals: torch.Tensor) -> torch.Tensor:
    """Real rows of each chunk, from those of its whole batch."""
    return (totals - inputs.offsets).clamp(0, inputs.chunk)


def real_in(inputs: PaddedTokensInputs, counts: torch.Tensor) -> torch.Tensor:
    """Which rows are real, bool ``[rows]``, if the first ones of each chunk are."""
    place = torch.arange(inputs.chunk, device=counts.device)
    return (place < counts.unsqueeze(1)).flatten()


def masked(inputs: PaddedTokensInputs, real: torch.Tensor) -> torch.Tensor:
    """Weights of real rows, and zeros."""
    return inputs.weights.masked_fill(~real.unsqueeze(1), 0.0)


def weights_of(inputs: PaddedTokensInputs) -> torch.Tensor:
    """Weights as they should be."""
    return masked(inputs, real_in(inputs, real_of_chunks(inputs, inputs.totals)))


def to_all_experts(inputs: PaddedTokensInputs, experts: torch.Tensor) -> MoeRoutingInputs:
    """What the component of routing is given, with all experts here."""
    return MoeRoutingInputs(inputs.states, experts, len(inputs.factors), 0, len(inputs.factors))


def computed(inputs: PaddedTokensInputs, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """What experts make of their rows."""
    factors = inputs.factors.repeat_interleave(counts)
    return rows * torch.nn.functional.pad(factors, (0, len(rows) - len(factors))).unsqueeze(1)


def outputs_of(inputs: PaddedTokensInputs, weights: torch.Tensor, counts: torch.Tensor, total: torch.Tensor) -> Outputs:
    """Outputs of the component."""
    return {"weights": weights, "experts": inputs.experts, "counts": counts, "output": total}


@implementation("padded_tokens", on_device=True)
def masked_routing_v2(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """npu_moe_init_routing_v2 and npu_moe_finalize_routing by row, with masked weights."""
    weights = weights_of(inputs)
    rows, src_to_dst_row, counts, _ = routing.second(to_all_experts(inputs, inputs.experts), routing.COUNTS)
    rows = computed(inputs, rows, counts)
    back = MoeFinalizeInputs(rows, src_to_dst_row, weights, None)
    return outputs_of(inputs, weights, counts, finalized(back, src_to_dst_row, BY_ROW, rows))


@implementation("padded_tokens", on_device=True)
def masked_routing_v1(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """npu_moe_init_routing and npu_moe_finalize_routing by column, with masked weights."""
    weights, everywhere = weights_of(inputs), to_all_experts(inputs, inputs.experts)
    rows, src_to_dst_row, experts = routing.first(everywhere, routing.by_column(everywhere))
    ends = torch.ops.npu.npu_moe_compute_expert_tokens(experts, everywhere.all_experts).long()
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    rows = computed(inputs, rows, counts)
    back = MoeFinalizeInputs(rows, src_to_dst_row, weights, None)
    return outputs_of(inputs, weights, counts, finalized(back, src_to_dst_row, BY_COLUMN, rows))


@implementation("padded_tokens", on_device=True)
def masked_permute(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """npu_moe_token_permute and npu_moe_token_unpermute, with masked weights."""
    weights = weights_of(inputs)
    rows, src_to_dst_row = torch.ops.npu.npu_moe_token_permute(inputs.states, inputs.experts)
    counts = torch.bincount(inputs.experts.flatten(), minlength=len(inputs.factors))
    rows = computed(inputs, rows, counts)
    total = torch.ops.npu.npu_moe_token_unpermute(rows, src_to_dst_row, probs=weights)
    return outputs_of(inputs, weights, counts, total)


@implementation("padded_tokens", on_device=True)
def native_masked(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Composed of plain torch operators."""
    return native(inputs, weights_of(inputs), inputs.experts)


def native(inputs: PaddedTokensInputs, weights: torch.Tensor, experts: torch.Tensor) -> Outputs:
    """Sorted, computed and brought together by plain torch operators, with given weights and experts."""
    everywhere = to_all_experts(inputs, experts)
    order, counts = routing.sorted_copies(everywhere)
    rows = computed(inputs, inputs.states[order // experts.shape[1]], counts)
    src_to_dst_row = torch.full_like(experts, -1, dtype=torch.int64).flatten()
    src_to_dst_row[order] = torch.arange(len(order), device=order.device)
    total = together(MoeFinalizeInputs(rows, src_to_dst_row.view(experts.shape), weights, None))
    return {"weights": weights, "experts": experts, "counts": counts, "output": total}
