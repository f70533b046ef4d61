"""Wrong ways of sorting tokens by expert."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.moe_routing import COUNTS, CUMULATIVE, Outputs, native_routing, outputs_of, second
from npudiff.reference.moe_routing import MoeRoutingInputs


@npudiff.implementation(
    "moe_routing",
    name="first_count_is_the_seconds",
    supports={"experts": range(4, 2049)},
    mutant_of="init_routing_v2",
    wrong="MOE-01 https://github.com/vllm-project/vllm-ascend/pull/5025: the first difference twice",
)
def first_count_is_the_seconds(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Take differences of cumulative counts, and the first one once more for the first expert."""
    on_device = inputs.to(target.device)
    rows, places, ends, scale = second(on_device, CUMULATIVE)
    counts = torch.diff(ends)
    return outputs_of(on_device, rows, places, torch.cat([counts[:1], counts]), scale)


@npudiff.implementation(
    "moe_routing",
    name="ends_for_counts",
    mutant_of="init_routing_v2",
    wrong="MOE-02 https://github.com/vllm-project/vllm-ascend/pull/4822: cumulative counts where counts belong",
)
def ends_for_counts(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Ask for cumulative counts."""
    on_device = inputs.to(target.device)
    return outputs_of(on_device, *second(on_device, CUMULATIVE))


@npudiff.implementation(
    "moe_routing",
    name="all_experts_are_here",
    supports={"form": ("as they are",)},
    mutant_of="native_routing",
    wrong="MOE-05 https://github.com/sgl-project/sglang/pull/40705: global experts beside local weights",
)
def all_experts_are_here(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Sort copies for all experts, and cut the counts to those that are here."""
    outputs = native_routing(replace(inputs, first=0, last=inputs.all_experts), target)
    return {**outputs, "counts": outputs["counts"][inputs.first : inputs.last]}


@npudiff.implementation(
    "moe_routing",
    name="row_of_the_last_for_none",
    supports={"local": (True,)},
    mutant_of="init_routing_v2",
    wrong="MOE-05 https://github.com/sgl-project/sglang/pull/40705: -1 is read as the last row",
)
def row_of_the_last_for_none(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Count places of copies that are not here from the end."""
    on_device = inputs.to(target.device)
    rows, places, counts, scale = second(on_device, COUNTS)
    return outputs_of(on_device, rows, torch.where(places < 0, places + len(places), places), counts, scale)


@npudiff.implementation(
    "moe_routing",
    name="factors_of_the_first_expert",
    supports={"form": ("smoothed",)},
    mutant_of="init_routing_v2",
    wrong="https://github.com/vllm-project/vllm-ascend/pull/16806: factors of the first expert for all of them",
)
def factors_of_the_first_expert(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Give the operator the first row of factors, which it takes for all experts."""
    on_device = inputs.to(target.device)
    scale = None if on_device.scale is None else on_device.scale[:1].contiguous()
    wrong = replace(on_device, scale=scale)
    return outputs_of(wrong, *second(wrong, COUNTS))


@npudiff.implementation(
    "moe_routing",
    name="scales_in_the_order_of_tokens",
    supports={"form": ("with scales",)},
    mutant_of="native_routing",
    wrong="QNT-10 https://github.com/sgl-project/sglang/pull/31529: scales of the dispatch do not follow its rows",
)
def scales_in_the_order_of_tokens(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Repeat the scale of each token for its copies, and leave them where they are."""
    outputs: Outputs = native_routing(inputs, target)
    scale = None if inputs.scale is None else inputs.scale.repeat_interleave(inputs.experts.shape[1])
    return outputs if scale is None else {**outputs, "scale": scale}
