"""Gated activations of sglang: of dense layers, ``layers/activation.py``, and of experts, ``npu/moe/activation.py``."""

from __future__ import annotations

import torch
from sglang.srt.hardware_backend.npu.moe.activation import NPUSwigluStepAndMul
from sglang.srt.layers.activation import SiluAndMul

from npudiff import Target, implementation
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.swiglu import SwigluInputs

_STEP: Box = {"activation": ("silu", "swiglustep"), "layout": ("halves",)}


@implementation("swiglu", name="SiluAndMul.forward_npu", supports={**_STEP, "limited": (False,)}, on_device=True)
def silu_and_mul(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """SiluAndMul.forward_npu: npu_swiglu."""
    configured()
    answer: torch.Tensor = SiluAndMul().forward_npu(inputs.states)
    return answer


@implementation(
    "swiglu", name="SiluAndMul.forward_native", supports={**_STEP, "limited": (False,)}, on_device=True, native=True
)
def silu_and_mul_native(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """SiluAndMul.forward_native."""
    configured()
    answer: torch.Tensor = SiluAndMul().forward_native(inputs.states)
    return answer


@implementation("swiglu", name="NPUSwigluStepAndMul", supports=_STEP, on_device=True)
def swiglu_step_and_mul(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """NPUSwigluStepAndMul with the limit of the configuration, or without one."""
    answer: torch.Tensor = NPUSwigluStepAndMul(inputs.limit)._apply_activation(inputs.states)[0]
    return answer
