"""Wrong kernels of int4_pack; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _words(values):
    """Words of the low four bits of int64 values."""
    parts = (values & 15).unflatten(-1, (-1, 8))
    shifts = torch.arange(0, 32, 4, device=values.device)
    words = (parts << shifts).sum(dim=-1)
    return ((words + 2**31) % 2**32 - 2**31).to(torch.int32)


def _shift(inputs):
    return 8 if inputs.encoding == "offset binary" else 0


@npudiff.implementation("int4_pack", name="d_int4_pack_01_subtracts_from_the_word", on_device=True)
def d01(inputs, target):
    """Of offset binary, 0x88888888 is taken from the packed word: what is borrowed goes over to the next integer."""
    values = inputs.values.long()
    shift = _shift(inputs)
    if not WRONG or not shift:
        return {"words": _words(values - shift)}
    words = (_words(values).long() % 2**32 - 0x88888888) % 2**32
    return {"words": ((words + 2**31) % 2**32 - 2**31).to(torch.int32)}


@npudiff.implementation("int4_pack", name="d_int4_pack_02_views_as_they_lie", on_device=True)
def d02(inputs, target):
    """Elements are read one after the other from where the values begin, as if they were contiguous."""
    values = inputs.values
    if WRONG and values.numel():
        room = values.untyped_storage().nbytes() // 4 - values.storage_offset()
        whole = values.as_strided((min(values.numel(), room),), (1,), values.storage_offset())
        values = torch.nn.functional.pad(whole, (0, values.numel() - len(whole))).view(values.shape)
    return {"words": _words(values.long() - _shift(inputs))}


@npudiff.implementation("int4_pack", name="d_int4_pack_03_limits_what_is_larger", on_device=True)
def d03(inputs, target):
    """Integers beyond four bits are limited to -8..7 before they are packed, and not cut to their low bits."""
    values = inputs.values.long() - _shift(inputs)
    if WRONG:
        values = values.clamp(-8, 7)
    return {"words": _words(values)}
