"""Scales as the hardware takes them, made by the operator or as sglang and vllm-ascend make them on the host.

Sources: sglang 0.5.23, ``hardware_backend/npu/quantization/moe_methods.py`` (804-828); vllm-ascend,
``quantization/methods/w4a8.py``; operator ``npu_trans_quant_param``.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.scale_pack import ScalePackInputs

FIXPIPE: Box = {"form": ("fixpipe",)}
BITS: Box = {"form": ("bits",)}

HIGH_BITS = -(2**13)
"""All but the lowest 13."""

NINE_BITS = 2**9 - 1


@implementation("scale_pack", supports=FIXPIPE, on_device=True, graph=True)
def npu_trans_quant_param(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """npu_trans_quant_param, scales of experts as one axis."""
    offset = None if inputs.offset is None else inputs.offset.flatten()
    words: torch.Tensor = torch.ops.npu.npu_trans_quant_param(inputs.scale.flatten(), offset, inputs.round_mode)
    return words.view(inputs.scale.shape) if inputs.scale.dim() > 1 else words


@implementation("scale_pack", supports=FIXPIPE, on_device=True, graph=True)
def composed_fixpipe(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Composed of shifts and masks."""
    return cut(inputs.scale, inputs.round_mode) | 1 << 46 | placed(inputs.offset)


def widened(scale: torch.Tensor) -> torch.Tensor:
    """The bits of float32 numbers in the low half of int64, nothing above."""
    return scale.view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def cut(scale: torch.Tensor, round_mode: int) -> torch.Tensor:
    """The upper 19 bits of float32 numbers, int64; rounded by adding a half first."""
    return widened(scale) + (2**12 if round_mode == 1 else 0) & HIGH_BITS


def placed(offset: torch.Tensor | None) -> torch.Tensor | int:
    """Offsets where the fixpipe form has them, int64."""
    if offset is None:
        return 0
    return (offset.round().clamp(-256, 255).to(torch.int64) & NINE_BITS) << 37


@implementation("scale_pack", supports=BITS, on_device=True, graph=True)
def view_widened(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Viewed as int32, widened to int64, and without the copies of the sign."""
    return widened(inputs.scale)


@implementation("scale_pack", supports=BITS, on_device=True)
def reinterpreted_on_host(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Reinterpreted as uint32 by NumPy and widened, as sglang and vllm-ascend do."""
    words = inputs.scale.cpu().numpy().view("uint32").astype("int64")
    return torch.from_numpy(words).to(target.device)


@implementation("scale_pack", supports=BITS, on_device=True, graph=True)
def lower_halves(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Written to every other element of float32 zeros, and those viewed in pairs."""
    return halves(inputs.scale, 0)


def halves(scale: torch.Tensor, which: int) -> torch.Tensor:
    """Words of 64 bits whose lower (0) or upper (1) half is the scale."""
    pairs = torch.zeros(*scale.shape, 2, dtype=torch.float32, device=scale.device)
    pairs[..., which] = scale
    return pairs.view(torch.int64).squeeze(-1)
