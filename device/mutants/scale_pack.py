"""Scales that the hardware would misread."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.scale_pack import BITS, FIXPIPE, composed_fixpipe, cut, halves, placed, view_widened, widened
from npudiff.model.constraints import Box
from npudiff.reference.scale_pack import ScalePackInputs

_OFFSETS: Box = {**FIXPIPE, "offset": ("each", "one", "many for one scale")}


@npudiff.implementation(
    "scale_pack",
    name="sign_of_scale_extended",
    supports=BITS,
    mutant_of="view_widened",
    wrong="moe_methods.py 804-809: the bits are those of an unsigned number, whose upper half is zero",
)
def sign_of_scale_extended(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Widen int32, so that a negative scale has ones in its upper half."""
    return inputs.to(target.device).scale.view(torch.int32).to(torch.int64)


@npudiff.implementation(
    "scale_pack",
    name="scale_as_a_number",
    supports=BITS,
    mutant_of="view_widened",
    wrong="QNT-07 https://github.com/vllm-project/vllm-ascend/issues/7443: a scale of another dtype than is asked for",
)
def scale_as_a_number(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Convert the value of a scale instead of its bits."""
    return inputs.to(target.device).scale.to(torch.int64)


@npudiff.implementation(
    "scale_pack",
    name="scale_in_the_upper_half",
    supports=BITS,
    mutant_of="view_widened",
    wrong="moe_methods.py 811-828: scales go to even slots of a buffer of 32 bits, and odd ones stay zero",
)
def scale_in_the_upper_half(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Write to odd slots."""
    return halves(inputs.to(target.device).scale, 1)


@npudiff.implementation(
    "scale_pack",
    name="marker_where_none_belongs",
    supports=BITS,
    mutant_of="view_widened",
    wrong="test_npu_quant_matmul.py 29: the marker belongs to the form of npu_quant_matmul, and not to W4A8",
)
def marker_where_none_belongs(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Make the fixpipe form where plain bits are wanted."""
    return composed_fixpipe(replace(inputs, form="fixpipe"), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "scale_pack",
    name="marker_missing",
    supports=FIXPIPE,
    mutant_of="composed_fixpipe",
    wrong="test_npu_quant_matmul.py 29: 2**46 is set in every scale of an int8 output",
)
def marker_missing(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Leave the marker out."""
    on_device = inputs.to(target.device)
    return cut(on_device.scale, inputs.round_mode) | placed(on_device.offset)


@npudiff.implementation(
    "scale_pack",
    name="low_bits_of_scale_kept",
    supports=FIXPIPE,
    mutant_of="composed_fixpipe",
    wrong="test_npu_quant_matmul.py 18: the hardware reads 19 bits of a scale, and the others have to be zero",
)
def low_bits_of_scale_kept(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Keep all bits of the float32."""
    on_device = inputs.to(target.device)
    return widened(on_device.scale) | 1 << 46 | placed(on_device.offset)


@npudiff.implementation(
    "scale_pack",
    name="scale_rounded_where_cut",
    supports={**FIXPIPE, "round_mode": (0,)},
    mutant_of="composed_fixpipe",
    wrong="test_npu_quant_matmul.py 18: the default round_mode cuts bits off, as a mask does",
)
def scale_rounded_where_cut(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Round to the nearest in every mode."""
    return composed_fixpipe(replace(inputs, round_mode=1), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "scale_pack",
    name="scale_cut_where_rounded",
    supports={**FIXPIPE, "round_mode": (1,)},
    mutant_of="composed_fixpipe",
    wrong="test_npu_quant_matmul.py 18: what holds for the default round_mode does not for the other",
)
def scale_cut_where_rounded(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Cut bits off in every mode."""
    return composed_fixpipe(replace(inputs, round_mode=0), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "scale_pack",
    name="sign_of_offset_extended",
    supports=_OFFSETS,
    mutant_of="composed_fixpipe",
    wrong="QNT-05 https://github.com/vllm-project/compressed-tensors/pull/518: a negative part is not masked",
)
def sign_of_offset_extended(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Do not mask a negative offset, which is all ones above its nine bits."""
    on_device = inputs.to(target.device)
    if on_device.offset is None:
        return composed_fixpipe(on_device, target)  # type: ignore[no-any-return]
    offset = on_device.offset.round().clamp(-256, 255).to(torch.int64)
    return cut(on_device.scale, inputs.round_mode) | 1 << 46 | offset << 37


@npudiff.implementation(
    "scale_pack",
    name="offset_cut_to_an_integer",
    supports=_OFFSETS,
    mutant_of="composed_fixpipe",
    wrong="test_npu_quant_matmul.py 29: offsets are rounded to the nearest integer before they are packed",
)
def offset_cut_to_an_integer(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Cut off the fraction of an offset."""
    on_device = inputs.to(target.device)
    offset = None if on_device.offset is None else on_device.offset.trunc()
    return composed_fixpipe(replace(on_device, offset=offset), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "scale_pack",
    name="memory_of_scales",
    supports={**BITS, "layout": ("transposed",)},
    mutant_of="view_widened",
    wrong="moe_methods.py 804-809: scales are a transposed view, which has to be made contiguous",
)
def memory_of_scales(inputs: ScalePackInputs, target: Target) -> torch.Tensor:
    """Read the elements of a transposed view one after the other, as they lie."""
    words: torch.Tensor = view_widened(inputs, target)
    return words.transpose(1, 2).contiguous().view(words.shape)
