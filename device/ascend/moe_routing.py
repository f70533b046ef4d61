"""Sorting tokens by expert as sglang's Ascend backend does it (``hardware_backend/npu/moe/init_routing.py``, 32-118).

The two versions of the operator number copies in other orders: the first by column (``choice * tokens + token``), the
second by row (``token * top_k + choice``).
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.moe_routing import MoeRoutingInputs

Outputs = dict[str, torch.Tensor]

CUMULATIVE, COUNTS = 0, 1
"""What expert_tokens_num_type asks for."""

PLACE_OF_COPY, COPY_AT_PLACE = 0, 1
"""row_idx_type: for each copy the row where it is, or for each row which copy it is."""

_MOVED: Box = {"form": ("as they are",)}
_PLAIN: Box = {**_MOVED, "local": (False,), "padded_ids": ("none",)}

QUANT_MODES = {"as they are": -1, "with scales": -1, "by largest": 1, "smoothed": 1, "one scale": 0}


def second(
    inputs: MoeRoutingInputs, kind: int, row_index: int = PLACE_OF_COPY
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call npu_moe_init_routing_v2. It is told which experts are here: its default is that of the first call."""
    return torch.ops.npu.npu_moe_init_routing_v2(  # type: ignore[no-any-return]
        inputs.states,
        inputs.experts,
        scale=inputs.scale,
        offset=inputs.offset,
        active_num=inputs.experts.numel(),
        expert_num=inputs.all_experts,
        expert_tokens_num_type=kind,
        expert_tokens_num_flag=True,
        active_expert_range=[inputs.first, inputs.last],
        row_idx_type=row_index,
        quant_mode=QUANT_MODES[inputs.form],
    )


def outputs_of(
    inputs: MoeRoutingInputs,
    rows: torch.Tensor,
    src_to_dst_row: torch.Tensor,
    counts: torch.Tensor,
    scale: torch.Tensor,
) -> Outputs:
    """Outputs of the component, from those of the second operator."""
    result = {"rows": rows, "src_to_dst_row": src_to_dst_row.view(inputs.experts.shape).long(), "counts": counts}
    return {**result, "scale": scale} if inputs.form in ("with scales", "by largest", "smoothed") else result


@implementation("moe_routing", on_device=True, graph=True)
def init_routing_v2(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing_v2 with counts."""
    return outputs_of(inputs, *second(inputs, COUNTS))


@implementation("moe_routing", on_device=True, graph=True)
def init_routing_v2_cumulative(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing_v2 with cumulative counts, from which those of each expert are taken."""
    rows, src_to_dst_row, ends, scale = second(inputs, CUMULATIVE)
    return outputs_of(inputs, rows, src_to_dst_row, torch.diff(ends, prepend=ends.new_zeros(1)), scale)


@implementation("moe_routing", on_device=True)
def init_routing_v2_scatter(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing_v2 with row_idx_type 1: the copy at each row, of which places are taken."""
    rows, copies, counts, scale = second(inputs, COUNTS, COPY_AT_PLACE)
    return outputs_of(inputs, rows, turned(copies, counts), counts, scale)


def turned(copies: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Places of copies, -1 for those that are nowhere, from the copies at the rows of all groups."""
    here = torch.arange(len(copies), device=copies.device) < counts.sum()
    src_to_dst_row = torch.full_like(copies, -1)
    src_to_dst_row[copies[here].long()] = torch.arange(len(copies), dtype=copies.dtype, device=copies.device)[here]
    return src_to_dst_row


@implementation("moe_routing", supports=_PLAIN, on_device=True, graph=True)
def init_routing_v1(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing, whose copies are numbered by column, and npu_moe_compute_expert_tokens."""
    rows, src_to_dst_row, sorted_experts = first(inputs, by_column(inputs))
    ends = torch.ops.npu.npu_moe_compute_expert_tokens(sorted_experts, inputs.all_experts).long()
    src_to_dst_row = src_to_dst_row.view(inputs.experts.shape[::-1]).T.contiguous().long()
    return {"rows": rows, "src_to_dst_row": src_to_dst_row, "counts": torch.diff(ends, prepend=ends.new_zeros(1))}


def by_column(inputs: MoeRoutingInputs) -> torch.Tensor:
    """Numbers of all copies, int32 ``[tokens, top_k]``."""
    tokens, top_k = inputs.experts.shape
    numbers = torch.arange(tokens * top_k, dtype=torch.int32, device=inputs.experts.device)
    return numbers.view(top_k, tokens).T.contiguous()


def first(inputs: MoeRoutingInputs, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call npu_moe_init_routing."""
    return torch.ops.npu.npu_moe_init_routing(  # type: ignore[no-any-return]
        inputs.states, row_idx=numbers, expert_idx=inputs.experts, active_num=len(inputs.states)
    )


@implementation("moe_routing", supports=_PLAIN, on_device=True)
def token_permute(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_token_permute, with counts from a histogram."""
    rows, src_to_dst_row = torch.ops.npu.npu_moe_token_permute(inputs.states, inputs.experts)
    counts = torch.bincount(inputs.experts.flatten(), minlength=inputs.all_experts)
    return {"rows": rows, "src_to_dst_row": src_to_dst_row.view(inputs.experts.shape).long(), "counts": counts}


@implementation("moe_routing", supports={"form": ("as they are", "with scales")}, on_device=True)
def native_routing(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Composed of a stable sort, an index and a histogram."""
    order, counts = sorted_copies(inputs)
    rows = inputs.states.new_zeros(inputs.experts.numel(), inputs.states.shape[1])
    rows[: len(order)] = inputs.states[order // inputs.experts.shape[1]]
    src_to_dst_row = torch.full_like(inputs.experts, -1, dtype=torch.int64).flatten()
    src_to_dst_row[order] = torch.arange(len(order), device=order.device)
    outputs = {"rows": rows, "src_to_dst_row": src_to_dst_row.view(inputs.experts.shape), "counts": counts}
    if inputs.scale is None:
        return outputs
    scale = inputs.scale.new_zeros(len(rows))
    scale[: len(order)] = inputs.scale[order // inputs.experts.shape[1]]
    return {**outputs, "scale": scale}


def sorted_copies(inputs: MoeRoutingInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the copies that are here, by row, sorted by expert; and how many each expert has."""
    flat = inputs.experts.flatten().long()
    here = (flat >= inputs.first) & (flat < inputs.last)
    numbers = torch.arange(len(flat), device=flat.device)[here]
    order = numbers[torch.sort(flat[here], stable=True).indices]
    return order, torch.bincount(flat[here] - inputs.first, minlength=inputs.last - inputs.first)
