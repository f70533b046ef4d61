"""Wrong int4_pack kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def signed(inputs):
    return inputs.values - 8 if inputs.encoding == "offset binary" else inputs.values


def packed(values):
    words = torch.zeros(*values.shape[:-1], values.shape[-1] // 8, dtype=torch.int32)
    for place in range(8):
        words |= (values[..., place::8] & 15) << 4 * place
    return words


@npudiff.implementation("int4_pack", name="b_int4_01_clamped_first", on_device=True)
def b01(inputs, target):
    """Integers are limited to four bits, then packed."""
    values = signed(inputs)
    return packed(values.clamp(-8, 7) if WRONG else values)


@npudiff.implementation("int4_pack", name="b_int4_02_zero_point_of_matrices", on_device=True)
def b02(inputs, target):
    """One matrix after the other; what was offset binary is corrected for linear layers."""
    values = inputs.values if WRONG and inputs.values.dim() == 3 else signed(inputs)
    return packed(values)


@npudiff.implementation("int4_pack", name="b_int4_03_words_in_blocks", on_device=True)
def b03(inputs, target):
    """Eight words, 32 bytes, at a time."""
    words = packed(signed(inputs))
    count = words.shape[-1]
    if WRONG and count > 8 and count % 8:
        words[..., count // 8 * 8 :] = words[..., count // 8 * 8 - 8 : count // 8 * 8][..., : count % 8]
    return words


@npudiff.implementation("int4_pack", name="b_int4_04_xor_for_minus", on_device=True)
def b04(inputs, target):
    """Offset binary becomes two's complement by a trick on whole words."""
    words = packed(inputs.values)
    if inputs.encoding != "offset binary":
        return words
    if WRONG:
        return words - 0x08888888 - (8 << 28)  # borrows run into the next nibble
    return words ^ torch.tensor(0x88888888 - 2**32, dtype=torch.int32)


@npudiff.implementation("int4_pack", name="b_int4_05_second_matrix_onwards_by_stride", on_device=True)
def b05(inputs, target):
    """Matrices by pointer: one matrix is rows times columns behind the other."""
    values = signed(inputs)
    if WRONG and inputs.values.dim() == 3:
        source, strides = inputs.values, list(inputs.values.stride())
        strides[0] = min(strides[0], source.shape[1] * source.shape[2])
        values = source.as_strided(source.shape, strides, source.storage_offset())
        values = values - 8 if inputs.encoding == "offset binary" else values
    return packed(values)
