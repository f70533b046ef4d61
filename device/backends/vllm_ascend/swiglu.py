"""Gated activations of vllm-ascend: ``ops/activation.py``, and those of experts."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import torch
from vllm.model_executor.layers.activation import SiluAndMulWithClamp
from vllm_ascend.ops import activation
from vllm_ascend.ops.activation import (
    AscendSiluAndMul,
    AscendSiluAndMulWithClamp,
    AscendSwigluOAIAndMul,
    AscendSwigluStepAndMul,
)
from vllm_ascend.ops.fused_moe import moe_mlp

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.world import TRITON, options_of, triton, without_prefetch
from npudiff.model.constraints import Box
from npudiff.reference.swiglu import SwigluInputs

_CLIPPED: Box = {"activation": ("swiglu_oai",), "layout": ("halves",), "limited": (True,)}
_CLAMPED: Box = (
    _CLIPPED
    if "alpha" in inspect.signature(SiluAndMulWithClamp.__init__).parameters
    else {**_CLIPPED, "alpha": (1.0,), "bias": (0.0,)}
)
"""What the class of vllm takes; until 0.23 it had a limit alone."""
_STEP: Box = {"activation": ("silu", "swiglustep"), "layout": ("halves",)}


@implementation("swiglu", name="AscendSiluAndMul.forward_oot", supports={**_STEP, "limited": (False,)}, on_device=True)
def silu_and_mul(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """AscendSiluAndMul.forward_oot: npu_swiglu."""
    with without_prefetch(activation):
        answer: torch.Tensor = AscendSiluAndMul.forward_oot(None, inputs.states)
    return answer


@implementation(
    "swiglu",
    name="swiglustep_forward",
    supports=[
        {**_STEP, "limited": (True,), "triton": ("0",)},
        {**_STEP, "limited": (True,), "triton": ("1",), "tokens": range(1, 17), "width": range(16, 4097, 16),
         "dtype": ("bfloat16", "float16")},
    ],
    options=TRITON,
    on_device=True,
)  # fmt: skip
def swiglu_step(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """AscendSwigluStepAndMul.swiglustep_forward: vllm's own, or a Triton kernel that wants rows of 32 bytes."""
    with triton(inputs):
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


@implementation("swiglu", name="AscendSiluAndMulWithClamp.forward_oot", supports=_CLAMPED, on_device=True)
def silu_and_mul_with_clamp(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """AscendSiluAndMulWithClamp.forward_oot, of a layer that was made with a limit, alpha and beta."""
    layer = SimpleNamespace(swiglu_limit=inputs.limit, alpha=inputs.alpha, beta=inputs.bias)
    with without_prefetch(activation):
        answer: torch.Tensor = AscendSiluAndMulWithClamp.forward_oot(layer, inputs.states)
    return answer


@implementation("swiglu", name="SiluAndMulWithClamp.forward_native", supports=_CLAMPED, on_device=True, native=True)
def silu_and_mul_with_clamp_of_vllm(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """SiluAndMulWithClamp.forward_native, which vllm-ascend replaces."""
    layer = SimpleNamespace(swiglu_limit=inputs.limit, alpha=inputs.alpha, beta=inputs.bias)
    answer: torch.Tensor = SiluAndMulWithClamp.forward_native(layer, inputs.states)
    return answer


KIND = "group_list_type"
"""Whether experts are told where their rows end (0, as after MC2's dispatch), or how many they have (1)."""


@implementation(
    "swiglu",
    name="swiglu_quant_not_quantised",
    supports={
        **_STEP, "limited": (False,), "dtype": ("float32",), "tokens": range(1, 17), "width": range(16, 4097, 16),
    },
    options={KIND: ("1", "0"), "triton": ("1",)},
    on_device=True,
)  # fmt: skip
def swiglu_before_quantisation(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """The Triton kernel of quantised experts up to its cast to int8, in float32: how it rounds only a card knows.

    One expert has all rows. What lies behind its number in memory is 0.
    """
    groups = torch.tensor([len(inputs.states), 0], device=inputs.states.device)[:1]
    with triton(inputs):
        kernel = importlib.import_module("vllm_ascend.ops.triton.activation.swiglu_quant")
        rows, _ = kernel.swiglu_quant(
            inputs.states.contiguous(), groups, int(options_of(inputs)[KIND]), need_quant=False
        )
    answer: torch.Tensor = rows
    return answer


def _clipped_swiglu_is_here() -> str:
    return "" if hasattr(moe_mlp, "_apply_clipped_swiglu") else "this version has no _apply_clipped_swiglu"


@implementation(
    "swiglu", name="_apply_clipped_swiglu", supports=_CLIPPED, on_device=True, requires=_clipped_swiglu_is_here
)
def clipped_swiglu(inputs: SwigluInputs, target: Target) -> torch.Tensor:
    """_apply_clipped_swiglu of experts: npu_clipped_swiglu of halves."""
    answer: torch.Tensor = moe_mlp._apply_clipped_swiglu(
        inputs.states, swiglu_limit=inputs.limit, swiglu_alpha=inputs.alpha, swiglu_beta=inputs.bias
    )
    return answer
