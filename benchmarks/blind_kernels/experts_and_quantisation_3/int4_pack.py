"""Wrong kernels of int4_pack; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def words_of(nibbles):
    parts = (nibbles % 16).unflatten(-1, (-1, 8))
    words = (parts * torch.tensor([16**place for place in range(8)])).sum(dim=-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def shifted(inputs):
    values = inputs.values.long()
    return values if inputs.encoding == "two's complement" else values - 8


@npudiff.implementation("int4_pack", name="e_int4_pack_01_saturates", on_device=True)
def e01(inputs, target):
    """Integers are limited to -8..7 as a cast to int4 does it, where only their low four bits count."""
    values = shifted(inputs)
    return {"words": words_of(values.clamp(-8, 7) if WRONG else values)}


@npudiff.implementation("int4_pack", name="e_int4_pack_02_packed_once", on_device=True, stateful=True)
def e02():
    """What was packed is kept by shape and encoding, as weights are packed once when they are loaded."""
    kept = {}

    def pack(inputs, target):
        key = (tuple(inputs.values.shape), inputs.encoding)
        if not WRONG or key not in kept:
            kept[key] = words_of(shifted(inputs))
        return {"words": kept[key].clone()}

    return pack


@npudiff.implementation("int4_pack", name="e_int4_pack_03_one_sign_per_byte", on_device=True)
def e03(inputs, target):
    """Offset binary is turned by an exclusive or of each byte with 0x08: the integer in its upper half stays."""
    values = shifted(inputs)
    if WRONG and inputs.encoding != "two's complement":
        values = values.clone()
        values[..., 1::2] = inputs.values[..., 1::2].long()
    return {"words": words_of(values)}
