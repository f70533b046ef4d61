"""Scales that are powers of two, float8 e8m0: a byte b stands for 2 ** (b - 127), and 255 for NaN.

Source: CANN's ``dynamic_mx_quant`` kernels for Ascend 950 (ops-nn), which compute them with the bits of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.block_scaled.small_floats import power_of_two

_BIAS = 127
_INVALID = 255
_MANTISSA = 23


@dataclass(frozen=True)
class Exponents:
    """Scales of blocks."""

    bytes: Tensor
    """uint8."""
    factor: Tensor
    """float32: what numbers of a block are multiplied by before they are rounded; NaN for 255."""


def _exponents(bits: Tensor, zero: Tensor, invalid: Tensor) -> Exponents:
    """Build scales of biased exponents; blocks that are zero are multiplied by 0, not by 2 ** 127."""
    stored = bits.masked_fill(zero, 0).masked_fill(invalid, _INVALID)
    factor = power_of_two(_BIAS - stored.clamp(max=2 * _BIAS)).masked_fill(zero, 0.0).masked_fill(invalid, torch.nan)
    return Exponents(stored.to(torch.uint8), factor)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32)


def rounded_down(largest: Tensor, highest_exponent: int) -> Exponents:
    """Return ``floor(log2(largest)) - highest_exponent``.

    Parameters
    ----------
    largest : Tensor
        float32, not negative: the largest magnitude of each block; infinity or NaN where the block has one.
    highest_exponent : int
        Of the format's numbers.

    Returns
    -------
    Exponents
        Blocks whose exponent is not above that of 2 ** (highest_exponent - 127) have the byte 0, and all their numbers
        become 0.
    """
    biased = _bits(largest) >> _MANTISSA
    return _exponents(biased - highest_exponent, biased <= highest_exponent, ~largest.isfinite())


def rounded_up(largest: Tensor, inverse: float, *, low_bound: float = 0.0, subnormals: bool = True) -> Exponents:
    """Return the least exponent so that no number of the block exceeds the format's largest.

    Parameters
    ----------
    largest : Tensor
        float32, as in :func:`rounded_down`.
    inverse : float
        Of the format's largest number; rounded to float32 before it is multiplied by.
    low_bound : float
        What the largest magnitude is at least, except in a block of zeros.
    subnormals : bool
        Whether a product that is subnormal is rounded up too, if it is above half of the least normal number.

    Returns
    -------
    Exponents
        Blocks of zeros have the byte 0.
    """
    quotient = _bits(largest.clamp(min=low_bound) * torch.tensor(inverse))
    exponent, mantissa = quotient >> _MANTISSA, quotient & ((1 << _MANTISSA) - 1)
    more = (exponent > 0) & (exponent < 254) & (mantissa > 0)
    if subnormals:
        more |= (exponent == 0) & (mantissa > 1 << (_MANTISSA - 1))
    return _exponents(exponent + more, largest == 0, ~largest.isfinite())


def rounded_up_from(largest: Tensor, highest_exponent: int, threshold: float) -> Exponents:
    """Return :func:`rounded_down`, and one more where the mantissa of the largest magnitude is above a threshold.

    Parameters
    ----------
    largest : Tensor
        float32, as in :func:`rounded_down`, with no more than the bits of bfloat16.
    highest_exponent : int
        Of the format's numbers.
    threshold : float
        1.5 or 1.75.

    Returns
    -------
    Exponents
        As rounded_down.
    """
    bits = _bits(largest)
    above = (threshold - 1) * (1 << _MANTISSA) < (bits & ((1 << _MANTISSA) - 1))
    biased = (bits >> _MANTISSA) + above
    too_small = (bits >> _MANTISSA < highest_exponent) | (biased <= highest_exponent)
    return _exponents(biased - highest_exponent, too_small, ~largest.isfinite())
