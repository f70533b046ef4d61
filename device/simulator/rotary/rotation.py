"""The arithmetic of rotary embeddings: how pairs are found, and how they are turned.

Two ways of pairing exist. In *half* order element i turns with element i + D/2 (GPT-NeoX); in *interleaved*
order element 2i turns with element 2i + 1 (GPT-J).
"""

from __future__ import annotations

import torch
from torch import Tensor

# bfloat16 keeps 7 of float32's 23 fraction bits.
_DROPPED_BITS = 16


def rotate_half(x: Tensor) -> Tensor:
    """Return ``[-x2, x1]`` for the halves ``[x1, x2]`` of the last dim."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotate_pairs(x: Tensor) -> Tensor:
    """Return ``-x[1], x[0], -x[3], x[2], ...`` along the last dim."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


def deinterleave(x: Tensor) -> Tensor:
    """Bring interleaved pairs into half order: even elements, then odd ones."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


def turn(x: Tensor, rotated: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x * cos + rotated * sin``; every product and the sum round to the dtype of the arguments."""
    return x * cos + rotated * sin


def to_bfloat16_half_away(values: Tensor) -> Tensor:
    """Round float32 to bfloat16, halves away from zero (AscendC ``CAST_ROUND``).

    Parameters
    ----------
    values : Tensor
        float32, any shape.

    Returns
    -------
    Tensor
        bfloat16, the same shape.
    """
    # Half a unit is added to the magnitude, then the dropped bits are cut; what is left converts exactly.
    bits = values.contiguous().view(torch.int32)
    rounded = ((bits + (1 << (_DROPPED_BITS - 1))) & -(1 << _DROPPED_BITS)).view(torch.float32)
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)
