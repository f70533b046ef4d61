"""Error bounds: how far a correct device may be from the exact value, and the rounding points that say so.

A bound is never a tolerance. Every constant below names one place where a correct device rounds; a reference runs
the absolute-value twin of its computation beside the value and sums these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

FLOAT32_ROUNDOFF = 2.0**-24
"""Unit roundoff of float32, the accumulator of every component here."""

ACCUMULATION_CONFIDENCE = 4.0
"""Factor of the probabilistic bound on a float32 sum.

Rounding errors of a sum of n products stay within ``factor * sqrt(n) * u`` times the sum of absolute values except
with probability ``2 exp(-factor**2 / 2)`` (N. Higham, T. Mary, "A new approach to probabilistic rounding error
analysis", SIAM J. Sci. Comput. 41(5), 2019). The worst case, ``n * u``, is never met and would hide bugs.
"""

EXPONENTIAL_ERROR = 2.0**-22 + 104.0 * FLOAT32_ROUNDOFF
"""Relative error of a float32 ``exp(s - m)``: four units in the last place for the function, and the rounding of its
argument, which lies in [-104, 0] before the result underflows."""


@dataclass(frozen=True)
class Expected:
    """What a correct implementation returns for one output.

    Attributes
    ----------
    value : torch.Tensor
        The right answer; float64 for computed floats, else the output's own dtype.
    bound : torch.Tensor
        float64, of the shape of ``value``: the largest correct ``|actual - value|`` of each element. 0 asks for
        equality; infinity says that the element is not specified, and any content, NaN included, is right.
    dtype : torch.dtype
        The dtype that an implementation must return.
    """

    value: torch.Tensor
    bound: torch.Tensor
    dtype: torch.dtype


def exactly(value: torch.Tensor) -> Expected:
    """Return the expectation that an output equals ``value`` bit for bit (masks, indices, moved data)."""
    return Expected(value, torch.zeros(value.shape, dtype=torch.float64), value.dtype)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding a normal number to ``dtype``: half of its machine epsilon."""
    return torch.finfo(dtype).eps / 2


def underflow_step(dtype: torch.dtype) -> float:
    """Largest absolute error of rounding a subnormal number to ``dtype``: half of its smallest subnormal."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2


def accumulation_error(terms: int) -> float:
    """Relative error of a float32 sum of ``terms`` products, with respect to the sum of absolute values."""
    return ACCUMULATION_CONFIDENCE * math.sqrt(terms) * FLOAT32_ROUNDOFF
