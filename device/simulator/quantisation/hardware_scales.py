"""Scales as the matrix unit takes them: 19 bits of a float32 in a word of 64, an offset of 9 bits beside it.

Source: op-plugin's ``npu_trans_quant_param``, and the golden of its test of ``npu_quant_matmul``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.quantisation.integers import saturated

_LOST_BITS = 13
_KEPT = 0xFFFFE000
_FLAG = 1 << 46
_OFFSET_SHIFT = 37
_OFFSET = (-256, 255)


def shortened(scale: Tensor, *, nearest: bool = False) -> Tensor:
    """Return what is left of a scale: its upper 19 bits.

    Parameters
    ----------
    scale : Tensor
        float32.
    nearest : bool
        Whether it is rounded to the nearest, ties to even, or cut.

    Returns
    -------
    Tensor
        float32.
    """
    bits = scale.contiguous().view(torch.int32)
    if nearest:
        bits = bits + (((bits >> _LOST_BITS) & 1) + (1 << (_LOST_BITS - 1)) - 1)
    return (bits & ~((1 << _LOST_BITS) - 1)).view(torch.float32)


def encoded(scale: Tensor, offset: Tensor | None, *, nearest: bool = False) -> Tensor:
    """Return scales, and offsets that broadcast with them, as words.

    Parameters
    ----------
    scale : Tensor
        float32.
    offset : Tensor, optional
        float32; rounded to even and kept between -256 and 255.
    nearest : bool
        How the scale loses bits, as in :func:`shortened`.

    Returns
    -------
    Tensor
        int64.
    """
    words = shortened(scale, nearest=nearest).view(torch.int32).to(torch.int64) & _KEPT | _FLAG
    if offset is None:
        return words
    return words | ((saturated(offset, _OFFSET, torch.int64) & 0x1FF) << _OFFSET_SHIFT)


def decoded(words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and the offsets of words.

    Parameters
    ----------
    words : Tensor
        int64.

    Returns
    -------
    scale : Tensor
        float32: the lower 32 bits.
    offset : Tensor
        float32, integers.
    """
    words = words.contiguous()
    scale = words.view(-1).view(torch.int32)[::2].contiguous().view(torch.float32).view(words.shape)
    offset = (words >> _OFFSET_SHIFT) & 0x1FF
    return scale, ((offset ^ 0x100) - 0x100).float()
