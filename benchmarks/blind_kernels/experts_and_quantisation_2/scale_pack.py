"""Wrong kernels of scale_pack; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _bits(scale):
    return scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def _rounded(bits, round_mode):
    """The upper 19 bits."""
    return (bits + (2**12 if round_mode == 1 else 0)) & ~(2**13 - 1)


def _placed(offset):
    if offset is None:
        return 0
    return (offset.double().round().clamp(-256, 255).long() & 511) << 37


@npudiff.implementation("scale_pack", name="d_scale_pack_01_offset_of_eight_bits", on_device=True)
def d01(inputs, target):
    """Offsets are cast to int8 before they are placed, and so limited to -128..127 in place of -256..255."""
    if inputs.form == "bits":
        return {"packed": _bits(inputs.scale)}
    offset = inputs.offset
    if WRONG and offset is not None:
        offset = offset.round().clamp(-128, 127)
    return {"packed": _rounded(_bits(inputs.scale), inputs.round_mode) + _placed(offset) + 2**46}


@npudiff.implementation("scale_pack", name="d_scale_pack_02_no_carry_into_the_exponent", on_device=True)
def d02(inputs, target):
    """Only the mantissa is rounded: where it is all ones, it becomes 0 and the exponent stays what it was."""
    bits = _bits(inputs.scale)
    if inputs.form == "bits":
        return {"packed": bits}
    rounded = _rounded(bits, inputs.round_mode)
    if WRONG:
        rounded = bits & ~(2**23 - 1) | rounded & 2**23 - 1
    return {"packed": rounded + _placed(inputs.offset) + 2**46}


@npudiff.implementation("scale_pack", name="d_scale_pack_03_rounds_in_both_modes", on_device=True)
def d03(inputs, target):
    """The scale is rounded to 19 bits as a cast does it, whatever the mode is."""
    bits = _bits(inputs.scale)
    if inputs.form == "bits":
        return {"packed": bits}
    return {"packed": _rounded(bits, 1 if WRONG else inputs.round_mode) + _placed(inputs.offset) + 2**46}
