"""Gated activations as sglang's Ascend backend calls them: by operator, composed, and chosen by the configuration.

Source: sglang 0.5.23, ``hardware_backend/npu/moe/activation.py`` 198-227 and the runner's choice in
``moe_runner/ascend.py`` 117-205.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.swiglu import Activation, SwigluInputs

Outputs = Mapping[str, torch.Tensor]

HALVES: Box = {"layout": ("halves",)}
STEP: Box = {"activation": ("silu", "swiglustep")}


@implementation("swiglu", supports={**STEP, **HALVES, "limited": (False,)}, on_device=True, graph=True)
def npu_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """npu_swiglu, which has no limit."""
    return torch.ops.npu.npu_swiglu(inputs.states)  # type: ignore[no-any-return]


@implementation(
    "swiglu", supports={"activation": ("gelu_tanh",), **HALVES, "limited": (False,)}, on_device=True, graph=True
)
def npu_geglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """npu_geglu, whose GELU is the one by a tangent unless it is told otherwise."""
    return plain(inputs.states, inputs.activation)


@implementation("swiglu", supports={"activation": ("swiglu_oai",), "limited": (True,)}, on_device=True, graph=True)
def npu_clipped_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """npu_clipped_swiglu, in both layouts."""
    return clipped(inputs)


def clipped(inputs: SwigluInputs) -> torch.Tensor:
    """Call the operator with what the configuration says."""
    return torch.ops.npu.npu_clipped_swiglu(  # type: ignore[no-any-return]
        inputs.states.contiguous(),
        alpha=inputs.alpha,
        limit=inputs.limit,
        bias=inputs.bias,
        interleaved=inputs.layout == "interleaved",
    )


@implementation("swiglu", on_device=True, graph=True)
def composed_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Composed of elementwise operators in the dtype of the states."""
    return composed(inputs)


def composed(inputs: SwigluInputs) -> torch.Tensor:
    """Gate and up, limited as the configuration says."""
    gate, up = parted(inputs.states, inputs.layout)
    if inputs.activation is Activation.SWIGLU_OAI:
        return oai(gate, up, inputs.limit, inputs.alpha, inputs.bias)
    return step(gate, up, inputs.limit, inputs.activation)


def parted(states: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and ups, ``[tokens, width]`` each."""
    if layout == "interleaved":
        return states[:, ::2], states[:, 1::2]
    width = states.shape[1] // 2
    return states[:, :width], states[:, width:]


def step(
    gate: torch.Tensor, up: torch.Tensor, limit: float | None, activation: Activation = Activation.SILU
) -> torch.Tensor:
    """The limit comes after the gate, from above only; the up is limited on both sides."""
    gelu = activation is Activation.GELU_TANH
    gated = torch.nn.functional.gelu(gate, approximate="tanh") if gelu else torch.nn.functional.silu(gate)
    if limit is None:
        return gated * up
    return gated.clamp(max=limit) * up.clamp(-limit, limit)


def oai(gate: torch.Tensor, up: torch.Tensor, limit: float | None, alpha: float, bias: float) -> torch.Tensor:
    """The limit comes before the gate, from above only; the up is limited on both sides."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + bias)


@implementation("swiglu", supports=HALVES, on_device=True, graph=True)
def by_configuration(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """The runner's choice: an operator where there is one, else composed."""
    if inputs.activation is Activation.SWIGLU_OAI:
        return composed(inputs) if inputs.limit is None else clipped(inputs)
    if inputs.limit is not None:
        return composed(inputs)
    return plain(inputs.states, inputs.activation)


def plain(states: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The operator of an activation without a limit, of gates and ups in halves."""
    if activation is Activation.GELU_TANH:
        return torch.ops.npu.npu_geglu(states, activate_left=True)[0]  # type: ignore[no-any-return]
    return torch.ops.npu.npu_swiglu(states)  # type: ignore[no-any-return]


@implementation("swiglu", supports={"rounding": ("once",)}, on_device=True, graph=True)
def swiglu_in_float32(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """Composed in float32, and rounded once: what models are trained with."""
    return composed(replace(inputs, states=inputs.states.float())).to(inputs.states.dtype)
