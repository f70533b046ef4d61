"""Integers of four bits, packed eight to a word of 32."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, exactly
from npudiff.reference.views import moved_inputs

ENCODINGS = ("two's complement", "offset binary")
"""What the low four bits of a given element mean: the integer itself, or the integer plus 8."""

INTEGERS_OF_A_WORD = 8

BITS = 4


@dataclass(frozen=True)
class Int4PackInputs:
    """Integers to pack, one per element."""

    values: torch.Tensor
    """int32 ``[rows, columns]`` or ``[matrices, rows, columns]``; it may be a view. Only the low four bits count."""
    encoding: str
    """One of ``ENCODINGS``: what they mean. What is packed is always two's complement."""

    def to(self, device: str | torch.device) -> Int4PackInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def int4_pack(inputs: Int4PackInputs) -> dict[str, Expected]:
    """Return the words, in which the integer of column ``8 c + i`` has bits ``4 i`` to ``4 i + 3`` of word ``c``.

    That is also two integers to a byte, the one of the even column in the lower half, as bytes are read by a machine
    that has the lowest one first. Sources: operators ``npu_convert_weight_to_int4pack`` and ``npu_quantize`` of
    torch_npu; the W4A8 weights of modelslim. The documentation of the first calls the order "interleaved", while its
    code, which was followed, packs one after the other.

    Returns
    -------
    dict
        ``words``: int32 ``[..., rows, columns / 8]``. Nothing is computed, so all bits are asked for.

    Raises
    ------
    ValueError
        If the values are not int32 matrices, 8 does not divide the columns, or the encoding is not known.
    """
    values = inputs.values
    if values.dtype != torch.int32 or values.dim() not in (2, 3):
        raise ValueError(f"values must be int32 of rank 2 or 3, got {values.dtype} of rank {values.dim()}")
    if values.shape[-1] % INTEGERS_OF_A_WORD:
        raise ValueError(f"columns must be a multiple of {INTEGERS_OF_A_WORD}, got {values.shape[-1]}")
    if inputs.encoding not in ENCODINGS:
        raise ValueError(f"encoding is one of {', '.join(ENCODINGS)}, got {inputs.encoding}")
    shift = 0 if inputs.encoding == ENCODINGS[0] else 2 ** (BITS - 1)
    nibbles = (values.to(torch.int64) - shift) % 2**BITS
    parts = nibbles.unflatten(-1, (-1, INTEGERS_OF_A_WORD))
    worth = torch.tensor([2 ** (BITS * place) for place in range(INTEGERS_OF_A_WORD)], device=values.device)
    words = (parts * worth).sum(dim=-1)
    return {"words": exactly(words.to(torch.int32))}  # the low 32 bits: from 2**31 on they are a negative number
