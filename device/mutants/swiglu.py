"""Wrong gated activations."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.swiglu import composed, composed_swiglu, oai, parted, step
from npudiff.reference.swiglu import Activation, SwigluInputs

_STEP = {"activation": ("silu", "swiglustep"), "limited": (True,)}
_OAI = {"activation": ("swiglu_oai",)}


def limited(numbers: torch.Tensor, limit: float | None) -> torch.Tensor:
    """Limit on both sides, as ups are."""
    return numbers if limit is None else numbers.clamp(-limit, limit)


@mutant(
    composed_swiglu, "ACT-01 sgl-project/sglang/pull/24582: plain SwiGLU for layers that have a limit", supports=_STEP
)
def step_without_limit(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Leave the limit out."""
    return step(*parted(inputs.states, inputs.layout), None)


@mutant(composed_swiglu, "ACT-02 vllm-project/vllm-ascend/pull/10491: silu of the limited gate", supports=_STEP)
def limit_before_the_gate(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Limit the gate, then apply silu."""
    gate, up = parted(inputs.states, inputs.layout)
    return torch.nn.functional.silu(gate.clamp(max=inputs.limit)) * limited(up, inputs.limit)


@mutant(
    composed_swiglu,
    "ACT-02 sgl-project/sglang/pull/39920: the gate has a lower limit too",
    supports=_OAI | {"limited": (True,)},
)
def gate_limited_on_both_sides(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Limit the gate from below as well."""
    gate, up = parted(inputs.states, inputs.layout)
    return oai(limited(gate, inputs.limit), up, inputs.limit, inputs.alpha, inputs.bias)


@mutant(
    composed_swiglu, "ACT-03 vllm-project/vllm-ascend/pull/9897: what was limited is not what is used", supports=_STEP
)
def limited_parts_not_joined(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Limit the up in a copy, and go on with the original."""
    gate, up = parted(inputs.states, inputs.layout)
    _ = limited(up, inputs.limit)
    return torch.nn.functional.silu(gate).clamp(max=inputs.limit) * up


@perturbed(composed_swiglu, "ACT-05 vllm-project/vllm-ascend/pull/11184: only routed experts are limited")
def shared_experts_without_limit(inputs: SwigluInputs) -> SwigluInputs:
    """Drop the limit of shared experts."""
    return replace(inputs, shared_limit=None)


@perturbed(composed_swiglu, "ACT-05 vllm-project/vllm-ascend/pull/11184: shared experts take the routed ones' limit")
def one_limit_for_all(inputs: SwigluInputs) -> SwigluInputs:
    """Take the limit of routed experts for all."""
    return replace(inputs, shared_limit=inputs.routed_limit)


@perturbed(
    composed_swiglu,
    "ACT-06 sgl-project/sglang/pull/39920: the limit is read under a name that nobody sets",
    supports=_OAI,
)
def limit_of_another_name(inputs: SwigluInputs) -> SwigluInputs:
    """Read a limit that is always None."""
    return replace(inputs, routed_limit=None, shared_limit=None)


@perturbed(composed_swiglu, "ACT-06 vllm-project/vllm/pull/42855: the default 7 where the configuration says nothing")
def limit_of_seven(inputs: SwigluInputs) -> SwigluInputs:
    """Put the default in the place of None."""
    return replace(inputs, routed_limit=inputs.routed_limit or 7.0, shared_limit=inputs.shared_limit or 7.0)


@mutant(composed_swiglu, "ACT-08 sgl-project/sglang/pull/14197: plain SwiGLU for swiglu_oai", supports=_OAI)
def oai_as_silu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Compute silu(gate) * up."""
    return step(*parted(inputs.states, inputs.layout), None)


@perturbed(
    composed_swiglu, "ACT-08 vllm-project/vllm/pull/45738: alpha 1.702 whatever the configuration says", supports=_OAI
)
def alpha_hard_coded(inputs: SwigluInputs) -> SwigluInputs:
    """Use GPT-OSS's alpha."""
    return replace(inputs, alpha=1.702)


@mutant(
    composed_swiglu,
    "ACT-09 vllm-project/vllm-ascend/pull/10491: an enumeration is never equal to its name",
    supports=_STEP,
)
def name_compared_with_a_string(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Choose by comparing the configuration's member with a string."""
    if inputs.activation is Activation.SILU or inputs.activation == "swiglustep":  # type: ignore[comparison-overlap]
        return composed(inputs)
    return step(*parted(inputs.states, inputs.layout), None)


@perturbed(
    composed_swiglu,
    "ACT-08 vllm-project/vllm/pull/43589: gates and ups read where another layout has them",
    supports=_OAI | {"layout": ("interleaved",), "width": range(2, 2**16 + 1)},
)
def halves_for_interleaved(inputs: SwigluInputs) -> SwigluInputs:
    """Take the first half for the gates."""
    return replace(inputs, layout="halves")
