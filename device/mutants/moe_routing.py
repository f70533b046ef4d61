"""Wrong ways of sorting tokens by expert."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from device.ascend.moe_routing import COUNTS, CUMULATIVE, Outputs, native_routing, outputs_of, second
from npudiff import Target
from reference.moe_routing import MoeRoutingInputs


@npudiff.implementation(
    "moe_routing",
    name="first_count_is_the_seconds",
    supports={"experts": range(4, 2049)},
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
    wrong="MOE-02 https://github.com/vllm-project/vllm-ascend/pull/4822: cumulative counts where counts belong",
)
def ends_for_counts(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Ask for cumulative counts."""
    on_device = inputs.to(target.device)
    return outputs_of(on_device, *second(on_device, CUMULATIVE))


@npudiff.implementation(
    "moe_routing",
    name="all_experts_are_here",
    supports={"quantised": (False,)},
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
    wrong="MOE-05 https://github.com/sgl-project/sglang/pull/40705: -1 is read as the last row",
)
def row_of_the_last_for_none(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Count places of copies that are not here from the end."""
    on_device = inputs.to(target.device)
    rows, places, counts, scale = second(on_device, COUNTS)
    return outputs_of(on_device, rows, torch.where(places < 0, places + len(places), places), counts, scale)
