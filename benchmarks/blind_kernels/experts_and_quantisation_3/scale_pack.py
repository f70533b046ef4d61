"""Wrong kernels of scale_pack; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"

STEP = 2**13


def packed(inputs, *, integer_of=torch.round, signed=False, carry=True):
    bits = inputs.scale.contiguous().view(torch.int32).long()
    if not signed:
        bits = bits % 2**32
    if inputs.form == "bits":
        return {"packed": bits}
    rest = bits % STEP
    kept = bits - rest
    if inputs.round_mode == 1:
        up = rest > STEP // 2
        if not carry:
            up &= (kept >> 13) % 2**10 != 2**10 - 1
        kept = torch.where(up, kept + STEP, kept)
    offset = torch.zeros_like(inputs.scale) if inputs.offset is None else inputs.offset
    integer = integer_of(offset.double()).clamp(-256, 255).long() % 2**9
    return {"packed": kept + 2**46 + integer * 2**37}


@npudiff.implementation("scale_pack", name="e_scale_pack_01_offset_cut", on_device=True)
def e01(inputs, target):
    """The offset is cast to an integer, which cuts it towards zero, and not rounded."""
    return packed(inputs, integer_of=torch.trunc if WRONG else torch.round)


@npudiff.implementation("scale_pack", name="e_scale_pack_02_sign_extended", on_device=True)
def e02(inputs, target):
    """The bits are widened as an int32: those of a negative scale fill the upper half with ones."""
    return packed(inputs, signed=WRONG)


@npudiff.implementation("scale_pack", name="e_scale_pack_03_no_carry", on_device=True)
def e03(inputs, target):
    """Rounding stays within the mantissa: one that is all ones is not rounded up into the exponent."""
    return packed(inputs, carry=not WRONG)
