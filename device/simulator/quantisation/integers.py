"""Numbers to integers, and eight integers of 4 bits in a word.

The chain of CANN's kernels is float32 to int32, to half to even, to float16, to int8 (``dynamic_quant.h``). The second
and third cast are exact for what fits into int8 and saturate otherwise, so that rounding and saturation say it all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.choices import Ties

INT8 = (-128, 127)
INT4 = (-8, 7)
PER_WORD = 8
"""How many integers of 4 bits a word of 32 has."""


def rounded(values: Tensor, ties: Ties = "half_to_even") -> Tensor:
    """Round to integers, in the dtype of the input; what has none stays as it is.

    Parameters
    ----------
    values : Tensor
        Any floating dtype.
    ties : str
        Where the middle between two integers goes.

    Returns
    -------
    Tensor
        The same shape and dtype.
    """
    if ties == "half_to_even":
        return values.round()
    # values.trunc() + 0.5 would round the number just below a half up.
    whole = values.trunc()
    return torch.where((values - whole).abs() >= 0.5, whole + values.sign(), whole)


def saturated(values: Tensor, limits: tuple[int, int], dtype: torch.dtype, ties: Ties = "half_to_even") -> Tensor:
    """Round to integers between two limits.

    Parameters
    ----------
    values : Tensor
        float32 or float64; of either, infinities are as the largest numbers.
    limits : tuple of int
        The smallest and the largest integer, both exact in the dtype of values.
    dtype : torch.dtype
        Of the output.
    ties : str
        Where the middle between two integers goes.

    Returns
    -------
    Tensor
        Integers; NaN becomes what the profile says.
    """
    whole = rounded(values, ties).nan_to_num_(nan=float(active_profile().nan_as_integer))
    return whole.clamp_(*limits).to(dtype)


def packed(values: Tensor) -> Tensor:
    """Put eight neighbours of the last axis into a word, the first into its lowest bits.

    Parameters
    ----------
    values : Tensor
        Integers, of which the low 4 bits count; the last axis is a multiple of 8.

    Returns
    -------
    Tensor
        int32, the last axis an eighth.
    """
    nibbles = values.to(torch.int32).reshape(*values.shape[:-1], values.shape[-1] // PER_WORD, PER_WORD) & 15
    # The bits are disjoint, so the sum is their union; torch sums in int64, and what is negative fits into int32.
    return (nibbles << _shifts()).sum(-1).to(torch.int32)


def unpacked(words: Tensor) -> Tensor:
    """Return the integers of 4 bits in words, the lowest bits first.

    Parameters
    ----------
    words : Tensor
        int32.

    Returns
    -------
    Tensor
        int8 between -8 and 7, the last axis eight times as long.
    """
    nibbles = (words.unsqueeze(-1) >> _shifts()) & 15
    return ((nibbles ^ 8) - 8).flatten(-2).to(torch.int8)


def _shifts() -> Tensor:
    return torch.arange(0, 32, 4, dtype=torch.int32)
