"""Wrong scale_pack kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def bits_of(scale):
    return scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def offset_of(inputs, rounded=torch.round, limited=True):
    if inputs.offset is None:
        return 0
    whole = rounded(inputs.offset)
    if limited:
        whole = whole.clamp(-256, 255)
    return (whole.double().to(torch.int64) & 0x1FF) << 37


def word(inputs, bits=None, offset=None):
    bits = bits_of(inputs.scale) if bits is None else bits
    if inputs.form == "bits":
        return bits
    bits = bits + (2**12 if inputs.round_mode == 1 else 0) & ~0x1FFF
    return (bits | 1 << 46) + (offset_of(inputs) if offset is None else offset)


@npudiff.implementation("scale_pack", name="b_scale_01_offset_half_up", on_device=True)
def b01(inputs, target):
    """Offsets are rounded by adding a half."""
    return word(inputs, offset=offset_of(inputs, lambda o: torch.floor(o + 0.5)) if WRONG else None)


@npudiff.implementation("scale_pack", name="b_scale_02_offset_wraps", on_device=True)
def b02(inputs, target):
    """Offsets are masked to nine bits."""
    return word(inputs, offset=offset_of(inputs, limited=not WRONG))


@npudiff.implementation("scale_pack", name="b_scale_03_carry_lost", on_device=True)
def b03(inputs, target):
    """The mantissa is rounded, and put below the exponent."""
    if not WRONG or inputs.form == "bits" or inputs.round_mode == 0:
        return word(inputs)
    bits = bits_of(inputs.scale)
    mantissa = ((bits & 0x7FFFFF) + 2**12) & 0x7FFFFF & ~0x1FFF
    return ((bits & 0xFF800000) | mantissa | 1 << 46) + offset_of(inputs)


@npudiff.implementation("scale_pack", name="b_scale_04_subnormals_flushed", on_device=True)
def b04(inputs, target):
    """Scales pass the vector unit on their way."""
    scale = inputs.scale
    if WRONG:
        scale = torch.where(scale.abs() < 2.0**-126, 0.0, scale)
    return word(inputs, bits_of(scale))


@npudiff.implementation("scale_pack", name="b_scale_05_first_offset_for_all", on_device=True)
def b05(inputs, target):
    """Scales of several experts, with offsets."""
    offset = None
    if WRONG and inputs.offset is not None and inputs.scale.dim() > 1:
        first = inputs.offset.flatten()[:1].round().clamp(-256, 255).to(torch.int64)
        offset = ((first & 0x1FF) << 37) + torch.zeros_like(inputs.offset, dtype=torch.int64)
    return word(inputs, offset=offset)


@npudiff.implementation("scale_pack", name="b_scale_06_sign_dropped", on_device=True)
def b06(inputs, target):
    """The low half of a word."""
    bits = bits_of(inputs.scale)
    if WRONG and inputs.form == "fixpipe":
        bits = bits & 0x7FFFFFFF
    return word(inputs, bits)


@npudiff.implementation("scale_pack", name="b_scale_07_offset_added_to_the_marker", on_device=True)
def b07(inputs, target):
    """Offsets lie below the marker, and are added there."""
    if not WRONG or inputs.offset is None:
        return word(inputs)
    whole = inputs.offset.round().clamp(-256, 255).to(torch.int64)
    return word(inputs, offset=whole << 37)  # a negative one borrows from the marker
