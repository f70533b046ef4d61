"""Error bounds: how far a correct device may be from the exact value, and the rounding points that say so.

A bound is never a tolerance. Every constant below names one place where a correct device rounds; a reference runs
the absolute-value twin of its computation beside the value and sums these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

FLOAT32_ROUNDOFF = 2.0**-24
"""Unit roundoff of float32, the accumulator of every component here."""

ACCUMULATION_CONFIDENCE = 4.0
"""Factor of the probabilistic bound on a float32 sum.

Rounding errors of a sum of n products stay within ``factor * sqrt(n) * u`` times the sum of absolute values except
with probability ``2 exp(-factor**2 / 2)`` (N. Higham, T. Mary, "A new approach to probabilistic rounding error
analysis", SIAM J. Sci. Comput. 41(5), 2019). The worst case, ``n * u``, is never met and would hide bugs.
"""

EXPONENTIAL_FUNCTION_ERROR = 2.0**-22
"""Relative error of a float32 exponential: four units in the last place."""

EXPONENTIAL_ERROR = EXPONENTIAL_FUNCTION_ERROR + 104.0 * FLOAT32_ROUNDOFF
"""Relative error of a float32 ``exp(s - m)``: that of the function, and the rounding of its argument, which lies in
[-104, 0] before the result underflows."""


@dataclass(frozen=True)
class Expected:
    """What a correct implementation returns for one output."""

    value: torch.Tensor
    """The right answer; float64 for computed floats, else the output's own dtype."""
    bound: torch.Tensor
    """float64, of the shape of ``value``: the largest correct ``|actual - value|`` of each element. 0 asks for
    equality; infinity says that the element is not specified, and any content, NaN included, is right."""
    dtype: torch.dtype
    """The dtype that an implementation must return."""
    gain: torch.Tensor | None = None
    """float64, of the shape of ``value`` without its last axis: the largest correct gain error of each row, see
    ``gain_bound``. None where nothing is said of it."""
    directions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name of a parameter to how the value changes with it, ``d value / d log(parameter)``, of the shape of ``value``:
    an error of the parameter that is too small for any element shows along it. It needs no more than a few digits."""
    computed: None = field(default=None, init=False)
    """Every element is compared as ``bound`` says: see ``Updated``."""


@dataclass(frozen=True)
class Computed:
    """Elements of an output that were computed, or of which nothing is said, and all the others, which were moved."""

    moved: torch.Tensor
    """The output as it is but for these elements, of its dtype: equal bit for bit."""
    places: torch.Tensor
    """int64 ``[elements]``: where they are in the flattened output, no place twice."""
    value: torch.Tensor
    bound: torch.Tensor
    """``[elements]``, as in ``Expected``."""


@dataclass(frozen=True)
class Updated:
    """What a correct implementation returns for an output that is moved but for some elements, such as a cache.

    It says what an ``Expected`` does, without numbers of float64 for millions of elements that need only be the same.
    """

    computed: Computed
    gain: None = field(default=None, init=False)
    directions: Mapping[str, torch.Tensor] = field(default_factory=dict, init=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that an implementation must return."""
        return self.computed.moved.dtype

    @cached_property
    def value(self) -> torch.Tensor:
        """The right answer, in float64 if anything was computed."""
        some = self.computed
        value = some.moved.to(some.value.dtype, copy=True)
        value.view(-1)[some.places] = some.value
        return value

    @cached_property
    def bound(self) -> torch.Tensor:
        """float64: the largest correct deviation of each element, 0 where it was moved."""
        some = self.computed
        bound = torch.zeros(some.moved.shape, dtype=torch.float64)
        bound.view(-1)[some.places] = some.bound
        return bound


def gain_bound(value: torch.Tensor, independent: torch.Tensor, common: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Return how far the gain of a correct row may be from 1.

    The gain error of a row is ``sum((actual - value) * value) / sum(value**2)``: by which factor it is too long along
    itself. Roundings of its elements that have nothing to do with each other nearly cancel in it, while an error that
    all elements have in common (a factor that is off or was rounded, truncation instead of rounding) stays whole. So
    it shows what is too small to be seen in any one element.

    Where numbers lie on a grid already, one rounding is no longer like another: a row of bfloat16 times 1.001 rounds
    back to itself, everywhere. What a rounding does to the gain of this very row comes from ``rounding_gain``.

    Parameters
    ----------
    value : torch.Tensor
        float64 ``[..., columns]``.
    independent : torch.Tensor
        Of the same shape: errors that are independent and bounded. Their sum goes by Hoeffding, as in
        ``reference.linear.carried``.
    common : torch.Tensor or float
        ``[...]``: relative error that all elements of a row have in common.

    Returns
    -------
    torch.Tensor
        float64 ``[...]``; infinity for a row of zeros.
    """
    weighted = ACCUMULATION_CONFIDENCE * (independent * value).square().sum(dim=-1).sqrt()
    size = value.square().sum(dim=-1)
    return torch.where(size > 0, weighted / size, torch.inf) + common


def rounding_gain(
    value: torch.Tensor, rounded: torch.Tensor, dtype: torch.dtype, factor: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Return the size of the gain error of rows that rounding one of their factors to a dtype causes.

    Parameters
    ----------
    value : torch.Tensor
        float64 ``[..., columns]``, of which ``rounded * factor`` is a term.
    rounded : torch.Tensor
        float64, what a device rounds on its way; broadcasts to ``value``.
    dtype : torch.dtype
        To what it is rounded.
    factor : torch.Tensor or float
        By what it is multiplied afterwards.
    """
    error = (rounded.to(dtype).to(torch.float64) - rounded) * factor
    size = value.square().sum(dim=-1)
    return torch.where(size > 0, (error * value).sum(dim=-1).abs() / size, 0.0)


def exactly(value: torch.Tensor) -> Expected:
    """Return the expectation that an output equals ``value`` bit for bit (masks, indices, moved data)."""
    return Expected(value, torch.zeros(value.shape, dtype=torch.float64), value.dtype)


def unspecified(output: Expected, rows: torch.Tensor) -> Expected:
    """Return the same expectation with nothing said of some rows, bool ``[rows]``, whatever they hold."""
    wide = rows.view(-1, *[1] * (output.value.dim() - 1))
    value, bound = output.value.masked_fill(wide, 0.0), output.bound.masked_fill(wide, torch.inf)
    return replace(output, value=value, bound=bound)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding a normal number to ``dtype``: half of its machine epsilon."""
    return torch.finfo(dtype).eps / 2


def underflow_step(dtype: torch.dtype) -> float:
    """Largest absolute error of rounding a subnormal number to ``dtype``: half of its smallest subnormal."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2


def accumulation_error(terms: int) -> float:
    """Relative error of a float32 sum of ``terms`` products, with respect to the sum of absolute values."""
    return ACCUMULATION_CONFIDENCE * math.sqrt(terms) * FLOAT32_ROUNDOFF
