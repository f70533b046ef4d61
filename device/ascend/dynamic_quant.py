"""Quantisation of rows as sglang's Ascend backend calls it (``hardware_backend/npu/quantization``, 38-50)."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.dynamic_quant import DynamicQuantInputs

Outputs = dict[str, torch.Tensor]

INTEGERS_OF_A_WORD = 8

RISING_ENDS: Box = {"empty_experts": ("none",)}
"""The documentation of group_index asks for ends that rise strictly: an expert without rows cannot be said."""


@implementation("dynamic_quant", supports={"bits": (8,), **RISING_ENDS}, on_device=True, graph=True)
def npu_dynamic_quant(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """npu_dynamic_quant to int8."""
    quantised, scale = torch.ops.npu.npu_dynamic_quant(
        inputs.states, smooth_scales=factors(inputs), group_index=inputs.expert_ends
    )
    return {"quantised": quantised, "scale": scale}


def factors(inputs: DynamicQuantInputs) -> torch.Tensor | None:
    """Factors as the operator takes them: a row of them has one axis, unless there is one per expert."""
    if inputs.smooth is None or inputs.expert_ends is not None:
        return inputs.smooth
    return inputs.smooth[0]


@implementation("dynamic_quant", supports={"bits": (4,), **RISING_ENDS}, on_device=True, graph=True)
def npu_dynamic_quant_int4(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """npu_dynamic_quant to int4, eight in a word."""
    words, scale = torch.ops.npu.npu_dynamic_quant(
        inputs.states,
        smooth_scales=factors(inputs),
        group_index=inputs.expert_ends,
        dst_type=torch.quint4x2,
    )
    return {"quantised": unpacked(words), "scale": scale}


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """Integers of four bits, int8 ``[..., 8 * n]``, from int32 words ``[..., n]``: the first in the lowest bits."""
    shifts = torch.arange(0, 4 * INTEGERS_OF_A_WORD, 4, device=words.device)
    nibbles = (words.unsqueeze(-1) >> shifts) & 0xF
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2).to(torch.int8)


@implementation("dynamic_quant", on_device=True, graph=True)
def composed_dynamic_quant(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Composed of elementwise operators in float32."""
    return quantised(smoothed(inputs), inputs.bits)


def smoothed(inputs: DynamicQuantInputs) -> torch.Tensor:
    """States times their factors, float32 ``[tokens, width]``."""
    if inputs.smooth is None:
        return inputs.states.float()
    factor = inputs.smooth
    if inputs.expert_ends is not None:
        token = torch.arange(len(inputs.states), device=inputs.states.device)
        factor = factor[torch.bucketize(token, inputs.expert_ends, right=True)]
    return inputs.states.float() * factor.float()


def quantised(states: torch.Tensor, bits: int) -> Outputs:
    """Integers and scales of float32 rows; a row of zeros has scale 1."""
    scale = states.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    safe = torch.where(scale == 0, 1.0, scale)
    return {"quantised": torch.round(states / safe.unsqueeze(1)).to(torch.int8), "scale": safe}
