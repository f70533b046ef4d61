"""Scales that the hardware would misread."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.scale_pack import FIXPIPE, composed_fixpipe, cut, halves, placed, view_widened, widened
from npudiff.model.constraints import Box
from npudiff.reference.scale_pack import ScalePackInputs

_OFFSETS: Box = {**FIXPIPE, "offset": ("each", "one", "many for one scale")}


@mutant(view_widened, "moe_methods.py 804-809: the bits are those of an unsigned number, whose upper half is zero")
def sign_of_scale_extended(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Widen int32, so that a negative scale has ones in its upper half."""
    return inputs.scale.view(torch.int32).to(torch.int64)


@mutant(view_widened, "QNT-07 vllm-project/vllm-ascend/issues/7443: a scale of another dtype than is asked for")
def scale_as_a_number(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Convert the value of a scale instead of its bits."""
    return inputs.scale.to(torch.int64)


@mutant(view_widened, "moe_methods.py 811-828: scales go to even slots of a buffer of 32 bits, and odd ones stay zero")
def scale_in_the_upper_half(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Write to odd slots."""
    return halves(inputs.scale, 1)


@mutant(
    view_widened, "test_npu_quant_matmul.py 29: the marker belongs to the form of npu_quant_matmul, and not to W4A8"
)
def marker_where_none_belongs(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Make the fixpipe form where plain bits are wanted."""
    return composed_fixpipe(replace(inputs, form="fixpipe"), target)


@mutant(composed_fixpipe, "test_npu_quant_matmul.py 29: 2**46 is set in every scale of an int8 output")
def marker_missing(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Leave the marker out."""
    return cut(inputs.scale, inputs.round_mode) | placed(inputs.offset)


@mutant(
    composed_fixpipe,
    "test_npu_quant_matmul.py 18: the hardware reads 19 bits of a scale, and the others have to be zero",
)
def low_bits_of_scale_kept(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Keep all bits of the float32."""
    return widened(inputs.scale) | 1 << 46 | placed(inputs.offset)


@perturbed(
    composed_fixpipe,
    "test_npu_quant_matmul.py 18: the default round_mode cuts bits off, as a mask does",
    supports={"round_mode": (0,)},
)
def scale_rounded_where_cut(inputs: ScalePackInputs) -> ScalePackInputs:
    """Round to the nearest in every mode."""
    return replace(inputs, round_mode=1)


@perturbed(
    composed_fixpipe,
    "test_npu_quant_matmul.py 18: what holds for the default round_mode does not for the other",
    supports={"round_mode": (1,)},
)
def scale_cut_where_rounded(inputs: ScalePackInputs) -> ScalePackInputs:
    """Cut bits off in every mode."""
    return replace(inputs, round_mode=0)


@mutant(
    composed_fixpipe,
    "QNT-05 vllm-project/compressed-tensors/pull/518: a negative part is not masked",
    supports=_OFFSETS,
)
def sign_of_offset_extended(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Do not mask a negative offset, which is all ones above its nine bits."""
    if inputs.offset is None:
        return composed_fixpipe(inputs, target)
    offset = inputs.offset.round().clamp(-256, 255).to(torch.int64)
    return cut(inputs.scale, inputs.round_mode) | 1 << 46 | offset << 37


@perturbed(
    composed_fixpipe,
    "test_npu_quant_matmul.py 29: offsets are rounded to the nearest integer before they are packed",
    supports=_OFFSETS,
)
def offset_cut_to_an_integer(inputs: ScalePackInputs) -> ScalePackInputs:
    """Cut off the fraction of an offset."""
    offset = None if inputs.offset is None else inputs.offset.trunc()
    return replace(inputs, offset=offset)


@mutant(
    view_widened,
    "moe_methods.py 804-809: scales are a transposed view, which has to be made contiguous",
    supports={"layout": ("transposed",)},
)
def memory_of_scales(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Read the elements of a transposed view one after the other, as they lie."""
    words = view_widened(inputs, target)
    return words.transpose(1, 2).contiguous().view(words.shape)
