"""Wrong choices of experts."""

from __future__ import annotations

from dataclasses import replace

import npudiff
from npudiff import Target
from npudiff.device.ascend.moe_gating import Outputs, best, by_expert, native_gating, scored, weighted
from npudiff.reference.moe_gating import MoeGatingInputs


@npudiff.implementation(
    "moe_gating",
    name="scaled_twice",
    mutant_of="native_gating",
    wrong="MOE-07 https://github.com/vllm-project/vllm-ascend/pull/9692: the operator scales, and so does the model",
)
def scaled_twice(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Apply the scaling twice."""
    return native_gating(replace(inputs, scaling=inputs.scaling**2), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "moe_gating",
    name="scaling_left_out",
    mutant_of="native_gating",
    wrong="MOE-07 https://github.com/vllm-project/vllm-ascend/pull/9692: the operator is given a scaling of 1",
)
def scaling_left_out(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Leave the scaling to somebody else."""
    return native_gating(replace(inputs, scaling=1.0), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "moe_gating",
    name="scaled_before_the_norm",
    supports={"renormalise": (True,)},
    mutant_of="native_gating",
    wrong="MOE-07 https://github.com/vllm-project/vllm-ascend/pull/9692: renormalised after they are scaled",
)
def scaled_before_the_norm(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Scale, then divide by the sum of what was scaled."""
    on_device = inputs.to(target.device)
    index = best(on_device, scored(on_device))
    weights = weighted(on_device, scored(on_device).gather(1, index))
    return by_expert(on_device, weights / weights.sum(dim=1, keepdim=True), index)


@npudiff.implementation(
    "moe_gating",
    name="groups_left_out",
    supports={"scoring": ("softmax",)},
    mutant_of="native_gating",
    wrong="MOE-08 https://github.com/vllm-project/vllm-ascend/pull/4050: softmax is taken for a router without groups",
)
def groups_left_out(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Choose among all experts."""
    return native_gating(replace(inputs, groups=1, kept_groups=1), target)  # type: ignore[no-any-return]
