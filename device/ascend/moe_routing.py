"""Sorting tokens by expert as sglang's Ascend backend does it (``hardware_backend/npu/moe/init_routing.py``, 32-118).

The two versions of the operator number copies in other orders: the first by column (``choice * tokens + token``), the
second by row (``token * chosen + choice``).
"""

from __future__ import annotations

import torch

import npudiff
from npudiff import Target
from npudiff.constraints import Box
from reference.moe_routing import MoeRoutingInputs

Outputs = dict[str, torch.Tensor]

CUMULATIVE, COUNTS = 0, 1
"""What expert_tokens_num_type asks for."""

_PLAIN: Box = {"quantised": (False,), "local": (False,)}


def second(inputs: MoeRoutingInputs, kind: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call npu_moe_init_routing_v2. It is told which experts are here: its default is that of the first call."""
    return torch.ops.npu.npu_moe_init_routing_v2(  # type: ignore[no-any-return]
        inputs.states,
        inputs.experts,
        active_num=inputs.experts.numel(),
        expert_num=inputs.all_experts,
        expert_tokens_num_type=kind,
        expert_tokens_num_flag=True,
        active_expert_range=[inputs.first, inputs.last],
        quant_mode=1 if inputs.quantised else -1,
    )


def outputs_of(
    inputs: MoeRoutingInputs, rows: torch.Tensor, places: torch.Tensor, counts: torch.Tensor, scale: torch.Tensor
) -> Outputs:
    """Outputs of the component, from those of the second operator."""
    result = {"rows": rows, "places": places.view(inputs.experts.shape).long(), "counts": counts}
    return {**result, "scale": scale} if inputs.quantised else result


@npudiff.implementation("moe_routing", name="init_routing_v2")
def init_routing_v2(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing_v2 with counts."""
    on_device = inputs.to(target.device)
    return outputs_of(on_device, *second(on_device, COUNTS))


@npudiff.implementation("moe_routing", name="init_routing_v2_cumulative")
def init_routing_v2_cumulative(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing_v2 with cumulative counts, from which those of each expert are taken."""
    on_device = inputs.to(target.device)
    rows, places, ends, scale = second(on_device, CUMULATIVE)
    return outputs_of(on_device, rows, places, torch.diff(ends, prepend=ends.new_zeros(1)), scale)


@npudiff.implementation("moe_routing", name="init_routing_v1", supports=_PLAIN)
def init_routing_v1(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_init_routing, whose copies are numbered by column, and npu_moe_compute_expert_tokens."""
    on_device = inputs.to(target.device)
    rows, places, sorted_experts = first(on_device, by_column(on_device))
    ends = torch.ops.npu.npu_moe_compute_expert_tokens(sorted_experts, on_device.all_experts).long()
    places = places.view(on_device.experts.shape[::-1]).T.contiguous().long()
    return {"rows": rows, "places": places, "counts": torch.diff(ends, prepend=ends.new_zeros(1))}


def by_column(inputs: MoeRoutingInputs) -> torch.Tensor:
    """Numbers of all copies, int32 ``[tokens, chosen]``."""
    tokens, chosen = inputs.experts.shape
    numbers = torch.arange(tokens * chosen, dtype=torch.int32, device=inputs.experts.device)
    return numbers.view(chosen, tokens).T.contiguous()


def first(inputs: MoeRoutingInputs, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call npu_moe_init_routing."""
    return torch.ops.npu.npu_moe_init_routing(  # type: ignore[no-any-return]
        inputs.states, row_idx=numbers, expert_idx=inputs.experts, active_num=len(inputs.states)
    )


@npudiff.implementation("moe_routing", name="token_permute", supports=_PLAIN)
def token_permute(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """npu_moe_token_permute, with counts from a histogram."""
    on_device = inputs.to(target.device)
    rows, places = torch.ops.npu.npu_moe_token_permute(on_device.states, on_device.experts)
    counts = torch.bincount(on_device.experts.flatten(), minlength=on_device.all_experts)
    return {"rows": rows, "places": places.view(on_device.experts.shape).long(), "counts": counts}


@npudiff.implementation("moe_routing", name="native_routing", supports={"quantised": (False,)})
def native_routing(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Composed of a stable sort, an index and a histogram."""
    on_device = inputs.to(target.device)
    order, counts = sorted_copies(on_device)
    rows = on_device.states.new_zeros(on_device.experts.numel(), on_device.states.shape[1])
    rows[: len(order)] = on_device.states[order // on_device.experts.shape[1]]
    places = torch.full_like(on_device.experts, -1, dtype=torch.int64).flatten()
    places[order] = torch.arange(len(order), device=order.device)
    return {"rows": rows, "places": places.view(on_device.experts.shape), "counts": counts}


def sorted_copies(inputs: MoeRoutingInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the copies that are here, by row, sorted by expert; and how many each expert has."""
    flat = inputs.experts.flatten().long()
    here = (flat >= inputs.first) & (flat < inputs.last)
    numbers = torch.arange(len(flat), device=flat.device)[here]
    order = numbers[torch.sort(flat[here], stable=True).indices]
    return order, torch.bincount(flat[here] - inputs.first, minlength=inputs.last - inputs.first)
