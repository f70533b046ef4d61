"""Gated activations of vllm-ascend: ``ops/activation.py``, and those of experts."""

from __future__ import annotations

import torch
from vllm_ascend.ops.activation import AscendSiluAndMul, AscendSwigluOAIAndMul, AscendSwigluStepAndMul

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.swiglu import SwigluInputs

_STEP: Box = {"activation": ("silu", "swiglustep"), "layout": ("halves",)}


@implementation("swiglu", name="AscendSiluAndMul.forward_oot", supports={**_STEP, "limited": (False,)}, on_device=True)
def silu_and_mul(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """AscendSiluAndMul.forward_oot: npu_swiglu."""
    answer: torch.Tensor = AscendSiluAndMul.forward_oot(None, inputs.states)
    return answer


@implementation("swiglu", name="swiglustep_forward", supports={**_STEP, "limited": (True,)}, on_device=True)
def swiglu_step(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """AscendSwigluStepAndMul.swiglustep_forward."""
    answer: torch.Tensor = AscendSwigluStepAndMul.swiglustep_forward(inputs.states, limit=inputs.limit)
    return answer


@implementation(
    "swiglu",
    name="swiglu_oai_forward",
    supports={"activation": ("swiglu_oai",), "layout": ("interleaved",), "limited": (True,), "bias": (1.0,)},
    on_device=True,
)
def swiglu_oai(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """AscendSwigluOAIAndMul.swiglu_oai_forward, whose bias is 1."""
    answer: torch.Tensor = AscendSwigluOAIAndMul.swiglu_oai_forward(
        inputs.states, alpha=inputs.alpha, limit=inputs.limit
    )
    return answer
