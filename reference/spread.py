"""Numbers with errors that are spread: how far a correct device is after a chain of products, stated once at the end.

``reference.inexact`` carries the largest error of each number, and ``reference.linear.carried`` multiplies by its
confidence at every product. Through a whole layer of five products that would be a factor of 1024. Here a number has
the scale of its error, its standard deviation, in place of a bound: a rounding is spread evenly, a sum of independent
errors has the root of the sum of squares, and only what comes out of the layer is multiplied by the confidence. That
sums of many are distributed normally, up to that confidence, is taken for granted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import ACCUMULATION_CONFIDENCE, Expected, underflow_step, unit_roundoff
from npudiff.reference.inexact import Inexact
from npudiff.reference.linear import product
from npudiff.reference.rms_norm import WEIGHT_OFFSETS, normalised

EVEN = 1 / math.sqrt(3)
"""Scale of an error that is spread evenly, over its largest size."""

CONFIDENCE = 6.0
"""Bound of an error, over its scale: a correct one is larger with probability ``2 exp(-CONFIDENCE**2 / 2)``, 3e-8. A
run looks at ten million elements, and scales are exact where bounds of single roundings have room to spare."""

CARRIED = ACCUMULATION_CONFIDENCE
"""What ``reference.linear.carried`` multiplies by."""


def rounding_scale(dtype: torch.dtype) -> float:
    """Return the scale of the relative error of rounding to a dtype."""
    return unit_roundoff(dtype) * EVEN


@dataclass(frozen=True)
class Spread:
    """Rows of exact values, and the scales of the errors of what a device has in their place."""

    value: torch.Tensor
    """float64 ``[..., columns]``."""
    independent: torch.Tensor
    """float64, of the same shape: scale of the error of each element, which has nothing to do with that of others."""
    common: torch.Tensor
    """float64 ``[..., 1]``: relative error that all elements of a row have in common, at its largest. A product with a
    matrix leaves it as it is."""

    @classmethod
    def exact(cls, rows: torch.Tensor) -> Spread:
        """Return numbers that a device has as they are."""
        value = rows.to(torch.float64)
        return cls.of(value, torch.zeros_like(value))

    @classmethod
    def of(cls, value: torch.Tensor, independent: torch.Tensor) -> Spread:
        """Return numbers whose errors have nothing in common."""
        return cls(value, independent, torch.zeros_like(value[..., :1]))

    @property
    def scale(self) -> torch.Tensor:
        """Scale of the error of each element, what it shares with its row included."""
        return self.independent + self.value.abs() * self.common

    @property
    def bounded(self) -> Inexact:
        """The same numbers with bounds, as ``CONFIDENCE`` says."""
        return Inexact(self.value, CONFIDENCE * self.independent + self.value.abs() * self.common)

    def rounded(self, dtype: torch.dtype) -> Spread:
        """Return the numbers as a device stores them in a dtype."""
        rounding = self.value.abs() * rounding_scale(dtype) + underflow_step(dtype)
        return Spread(self.value, torch.hypot(self.independent, rounding), self.common)

    def part(self, columns: slice) -> Spread:
        """Return some columns of every row."""
        return Spread(self.value[..., columns], self.independent[..., columns], self.common)

    def heads(self, count: int) -> Spread:
        """Return ``[rows, count, columns / count]``: the columns of each head as a row of its own."""
        shape = (*self.value.shape[:-1], count, -1)
        common = self.common.unsqueeze(-2).expand(*self.value.shape[:-1], count, 1)
        return Spread(self.value.reshape(shape), self.independent.reshape(shape), common)

    def rows(self, index: torch.Tensor | list[int]) -> Spread:
        """Return some rows, of the first axis."""
        return Spread(self.value[index], self.independent[index], self.common[index])

    def plus(self, other: Spread) -> Spread:
        """Return the sum with numbers whose errors have nothing to do with these; what rows share adds up."""
        common = self.value.abs() * self.common + other.value.abs() * other.common
        return Spread.of(self.value + other.value, torch.hypot(self.independent, other.independent) + common)

    def expected(self, dtype: torch.dtype) -> Expected:
        """Return what a device may have that stores these numbers, already rounded, in a dtype."""
        bounded = self.bounded
        return Expected(bounded.value, bounded.error, dtype)


def linear(rows: Spread, matrix: torch.Tensor, dtype: torch.dtype) -> Spread:
    """Return rows times a float64 matrix ``[..., inner, columns]``, rounded to a dtype as a device does."""
    exact = product(rows.value, matrix, dtype)
    brought = (rows.independent.square() @ matrix.square()).sqrt()
    return Spread(exact.value, torch.hypot(brought, exact.independent * EVEN), rows.common)


def normed(rows: Spread, weight: torch.Tensor, kind: str, epsilon: float, dtype: torch.dtype) -> Spread:
    """Return the RMS norm of every row, as ``reference.rms_norm`` has it, of a kind that it names.

    What the elements of a row have in common is in its root mean square as well, and goes, but for epsilon's part. A
    device may round what it normalised, the weight of a Gemma norm, and the result.
    """
    offset, rounding = WEIGHT_OFFSETS[kind], rounding_scale(dtype)
    wide = weight.to(torch.float64) + offset
    result = normalised(rows.value, rows.independent, wide, torch.zeros_like(wide), epsilon, dtype)
    roundings = 3 if offset else 2
    brought = rows.independent * result.rstd * wide.abs()
    independent = (brought.square() + roundings * (rounding * result.value).square()).sqrt() + underflow_step(dtype)
    kept = rows.common * epsilon * result.rstd.square()
    return Spread(result.value, independent, result.relative + kept)
