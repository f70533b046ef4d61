"""Wrong gated activations."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.swiglu import composed, oai, parted, step
from npudiff.reference.swiglu import Activation, SwigluInputs

_STEP = {"activation": ("silu", "swiglustep"), "limited": (True,)}
_OAI = {"activation": ("swiglu_oai",)}


def limited(numbers: torch.Tensor, limit: float | None) -> torch.Tensor:
    """Limit on both sides, as ups are."""
    return numbers if limit is None else numbers.clamp(-limit, limit)


@npudiff.implementation(
    "swiglu",
    name="step_without_limit",
    supports=_STEP,
    mutant_of="composed_swiglu",
    wrong="ACT-01 https://github.com/sgl-project/sglang/pull/24582: plain SwiGLU for layers that have a limit",
)
def step_without_limit(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Leave the limit out."""
    return step(*parted(inputs.to(target.device).states, inputs.layout), None)


@npudiff.implementation(
    "swiglu",
    name="limit_before_the_gate",
    supports=_STEP,
    mutant_of="composed_swiglu",
    wrong="ACT-02 https://github.com/vllm-project/vllm-ascend/pull/10491: silu of the limited gate",
)
def limit_before_the_gate(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Limit the gate, then apply silu."""
    gate, up = parted(inputs.to(target.device).states, inputs.layout)
    return torch.nn.functional.silu(gate.clamp(max=inputs.limit)) * limited(up, inputs.limit)


@npudiff.implementation(
    "swiglu",
    name="gate_limited_on_both_sides",
    supports=_OAI | {"limited": (True,)},
    mutant_of="composed_swiglu",
    wrong="ACT-02 https://github.com/sgl-project/sglang/pull/39920: the gate has a lower limit too",
)
def gate_limited_on_both_sides(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Limit the gate from below as well."""
    gate, up = parted(inputs.to(target.device).states, inputs.layout)
    return oai(limited(gate, inputs.limit), up, inputs.limit, inputs.alpha, inputs.bias)


@npudiff.implementation(
    "swiglu",
    name="limited_parts_not_joined",
    supports=_STEP,
    mutant_of="composed_swiglu",
    wrong="ACT-03 https://github.com/vllm-project/vllm-ascend/pull/9897: what was limited is not what is used",
)
def limited_parts_not_joined(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Limit the up in a copy, and go on with the original."""
    gate, up = parted(inputs.to(target.device).states, inputs.layout)
    _ = limited(up, inputs.limit)
    return torch.nn.functional.silu(gate).clamp(max=inputs.limit) * up


@npudiff.implementation(
    "swiglu",
    name="shared_experts_without_limit",
    mutant_of="composed_swiglu",
    wrong="ACT-05 https://github.com/vllm-project/vllm-ascend/pull/11184: only routed experts are limited",
)
def shared_experts_without_limit(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Drop the limit of shared experts."""
    return composed(replace(inputs.to(target.device), shared_limit=None))


@npudiff.implementation(
    "swiglu",
    name="one_limit_for_all",
    mutant_of="composed_swiglu",
    wrong="ACT-05 https://github.com/vllm-project/vllm-ascend/pull/11184: shared experts take the routed ones' limit",
)
def one_limit_for_all(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Take the limit of routed experts for all."""
    return composed(replace(inputs.to(target.device), shared_limit=inputs.routed_limit))


@npudiff.implementation(
    "swiglu",
    name="limit_of_another_name",
    supports=_OAI,
    mutant_of="composed_swiglu",
    wrong="ACT-06 https://github.com/sgl-project/sglang/pull/39920: the limit is read under a name that nobody sets",
)
def limit_of_another_name(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Read a limit that is always None."""
    return composed(replace(inputs.to(target.device), routed_limit=None, shared_limit=None))


@npudiff.implementation(
    "swiglu",
    name="limit_of_seven",
    mutant_of="composed_swiglu",
    wrong="ACT-06 https://github.com/vllm-project/vllm/pull/42855: the default 7 where the configuration says nothing",
)
def limit_of_seven(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Put the default in the place of None."""
    return composed(
        replace(
            inputs.to(target.device), routed_limit=inputs.routed_limit or 7.0, shared_limit=inputs.shared_limit or 7.0
        )
    )


@npudiff.implementation(
    "swiglu",
    name="oai_as_silu",
    supports=_OAI,
    mutant_of="composed_swiglu",
    wrong="ACT-08 https://github.com/sgl-project/sglang/pull/14197: plain SwiGLU for swiglu_oai",
)
def oai_as_silu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Compute silu(gate) * up."""
    return step(*parted(inputs.to(target.device).states, inputs.layout), None)


@npudiff.implementation(
    "swiglu",
    name="alpha_hard_coded",
    supports=_OAI,
    mutant_of="composed_swiglu",
    wrong="ACT-08 https://github.com/vllm-project/vllm/pull/45738: alpha 1.702 whatever the configuration says",
)
def alpha_hard_coded(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Use GPT-OSS's alpha."""
    return composed(replace(inputs.to(target.device), alpha=1.702))


@npudiff.implementation(
    "swiglu",
    name="name_compared_with_a_string",
    supports=_STEP,
    mutant_of="composed_swiglu",
    wrong="ACT-09 https://github.com/vllm-project/vllm-ascend/pull/10491: an enumeration is never equal to its name",
)
def name_compared_with_a_string(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Choose by comparing the configuration's member with a string."""
    on_device = inputs.to(target.device)
    if on_device.activation is Activation.SILU or on_device.activation == "swiglustep":  # type: ignore[comparison-overlap]
        return composed(on_device)
    return step(*parted(on_device.states, inputs.layout), None)


@npudiff.implementation(
    "swiglu",
    name="halves_for_interleaved",
    supports=_OAI | {"layout": ("interleaved",), "width": range(2, 2**16 + 1)},
    mutant_of="composed_swiglu",
    wrong="ACT-08 https://github.com/vllm-project/vllm/pull/43589: gates and ups read where another layout has them",
)
def halves_for_interleaved(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Take the first half for the gates."""
    return composed(replace(inputs.to(target.device), layout="halves"))
