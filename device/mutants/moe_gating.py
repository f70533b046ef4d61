"""Wrong choices of experts."""

from __future__ import annotations

from dataclasses import replace

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.moe_gating import Outputs, best, by_expert, native_gating, scored, weighted
from npudiff.reference.moe_gating import MoeGatingInputs


@perturbed(native_gating, "MOE-07 vllm-project/vllm-ascend/pull/9692: the operator scales, and so does the model")
def scaled_twice(inputs: MoeGatingInputs) -> MoeGatingInputs:
    """Apply the scaling twice."""
    return replace(inputs, scaling=inputs.scaling**2)


@perturbed(native_gating, "MOE-07 vllm-project/vllm-ascend/pull/9692: the operator is given a scaling of 1")
def scaling_left_out(inputs: MoeGatingInputs) -> MoeGatingInputs:
    """Leave the scaling to somebody else."""
    return replace(inputs, scaling=1.0)


@mutant(
    native_gating,
    "MOE-07 vllm-project/vllm-ascend/pull/9692: renormalised after they are scaled",
    supports={"renormalise": (True,)},
)
def scaled_before_the_norm(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Scale, then divide by the sum of what was scaled."""
    index = best(inputs, scored(inputs))
    weights = weighted(inputs, scored(inputs).gather(1, index))
    return by_expert(inputs, weights / weights.sum(dim=1, keepdim=True), index)


@perturbed(
    native_gating,
    "MOE-08 vllm-project/vllm-ascend/pull/4050: softmax is taken for a router without groups",
    supports={"scoring": ("softmax",)},
)
def groups_left_out(inputs: MoeGatingInputs) -> MoeGatingInputs:
    """Choose among all experts."""
    return replace(inputs, groups=1, kept_groups=1)


@mutant(
    native_gating,
    "vllm-project/vllm-ascend/issues/16736: the host looks at numbers to decide what is launched",
    graph=True,
)
def branch_of_the_capture(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Leave the choice by groups out where all scores are the same, as in a dummy run."""
    if float(inputs.logits.max()) == float(inputs.logits.min()):
        return native_gating(replace(inputs, groups=1, kept_groups=1), target)
    return native_gating(inputs, target)
