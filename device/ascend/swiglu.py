"""Gated activations as sglang's Ascend backend calls them: by operator, composed, and chosen by the configuration.

Source: sglang 0.5.23, ``hardware_backend/npu/moe/activation.py`` 198-227 and the runner's choice in
``moe_runner/ascend.py`` 117-205.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.model.constraints import Box
from npudiff.reference.swiglu import Activation, SwigluInputs

Outputs = Mapping[str, torch.Tensor]

HALVES: Box = {"layout": ("halves",)}
STEP: Box = {"activation": ("silu", "swiglustep")}


@npudiff.implementation("swiglu", name="npu_swiglu", supports={**STEP, **HALVES, "limited": (False,)})
def npu_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """npu_swiglu, which has no limit."""
    return torch.ops.npu.npu_swiglu(inputs.to(target.device).states)  # type: ignore[no-any-return]


@npudiff.implementation(
    "swiglu", name="npu_clipped_swiglu", supports={"activation": ("swiglu_oai",), "limited": (True,)}
)
def npu_clipped_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """npu_clipped_swiglu, in both layouts."""
    return clipped(inputs.to(target.device))


def clipped(inputs: SwigluInputs) -> torch.Tensor:
    """Call the operator with what the configuration says."""
    return torch.ops.npu.npu_clipped_swiglu(  # type: ignore[no-any-return]
        inputs.states.contiguous(),
        alpha=inputs.alpha,
        limit=inputs.limit,
        bias=inputs.bias,
        interleaved=inputs.layout == "interleaved",
    )


@npudiff.implementation("swiglu", name="composed_swiglu")
def composed_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Composed of elementwise operators in the dtype of the states."""
    return composed(inputs.to(target.device))


def composed(inputs: SwigluInputs) -> torch.Tensor:
    """Gate and up, limited as the configuration says."""
    gate, up = parted(inputs.states, inputs.layout)
    if inputs.activation is Activation.SWIGLU_OAI:
        return oai(gate, up, inputs.limit, inputs.alpha, inputs.bias)
    return step(gate, up, inputs.limit)


def parted(states: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and ups, ``[tokens, width]`` each."""
    if layout == "interleaved":
        return states[:, ::2], states[:, 1::2]
    width = states.shape[1] // 2
    return states[:, :width], states[:, width:]


def step(gate: torch.Tensor, up: torch.Tensor, limit: float | None) -> torch.Tensor:
    """The limit comes after the gate, from above only; the up is limited on both sides."""
    gated = torch.nn.functional.silu(gate)
    if limit is None:
        return gated * up
    return gated.clamp(max=limit) * up.clamp(-limit, limit)


def oai(gate: torch.Tensor, up: torch.Tensor, limit: float | None, alpha: float, bias: float) -> torch.Tensor:
    """The limit comes before the gate, from above only; the up is limited on both sides."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + bias)


@npudiff.implementation("swiglu", name="by_configuration", supports=HALVES)
def by_configuration(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """The runner's choice: an operator where there is one, else composed."""
    on_device = inputs.to(target.device)
    if on_device.activation is Activation.SWIGLU_OAI:
        return composed(on_device) if on_device.limit is None else clipped(on_device)
    if on_device.limit is None:
        return torch.ops.npu.npu_swiglu(on_device.states)  # type: ignore[no-any-return]
    return composed(on_device)


@npudiff.implementation("swiglu", name="swiglu_in_float32", supports={"rounding": ("once",)})
def swiglu_in_float32(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Composed in float32, and rounded once: what models are trained with."""
    on_device = inputs.to(target.device)
    return composed(replace(on_device, states=on_device.states.float())).to(inputs.states.dtype)
