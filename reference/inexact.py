"""Numbers with their errors: how far a correct device may be after a chain of elementwise operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import (
    EXPONENTIAL_FUNCTION_ERROR,
    FLOAT32_ROUNDOFF,
    Expected,
    accumulation_error,
    underflow_step,
    unit_roundoff,
)

FUNCTION_ERROR = 2.0**-22
"""Error of a float32 function of the device, with respect to the larger of its value and ``FUNCTION_SCALE``: four units
in the last place. That of an exponential has a name of its own in ``bounds``."""

FUNCTION_SCALE = 0.25
"""Below this size ``log`` and ``tanh`` may have the absolute error that they have there: what computes
them of exponentials, or by a polynomial, subtracts two numbers near one. No documentation of a device says so; 0 would
ask for all digits of small values."""

ERF_ERROR = 2.0**-21
"""Absolute error of a float32 error function: devices use the polynomial 7.1.26 of Abramowitz and Stegun, which is off
by 1.5e-7, and round its five terms and the exponential that it is multiplied by."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Inexact:
    """Exact values, and a bound on the error of what a device has in their place.

    Every operation returns the bound that follows from those of its operands, without any rounding of its own; a
    device rounds where ``rounded`` is called.
    """

    value: torch.Tensor
    """float64."""
    error: torch.Tensor
    """float64, of the same shape: the largest ``|device - value|``."""

    @classmethod
    def exact(cls, tensor: torch.Tensor) -> Inexact:
        """Return numbers that a device has as they are."""
        value = tensor.to(torch.float64)
        return cls(value, torch.zeros_like(value))

    def times(self, other: Inexact | float) -> Inexact:
        """Return the product: ``(a + d)(b + e) - ab``, in absolute values."""
        if not isinstance(other, Inexact):
            return Inexact(self.value * other, self.error * abs(other))
        error = self.error * other.value.abs() + self.value.abs() * other.error + self.error * other.error
        return Inexact(self.value * other.value, error.nan_to_num(nan=torch.inf, posinf=torch.inf))  # 0 times anything

    def over(self, other: Inexact) -> Inexact:
        """Return the quotient by positive numbers; nothing is said where a device may have 0 there."""
        value = self.value / other.value
        error = (self.error + value.abs() * other.error) / (other.value - other.error)
        return Inexact(value, torch.where(other.value > other.error, error, torch.inf))

    def plus(self, other: Inexact | float) -> Inexact:
        """Return the sum."""
        if not isinstance(other, Inexact):
            return Inexact(self.value + other, self.error)
        return Inexact(self.value + other.value, self.error + other.error)

    def at_most(self, limit: float, dtype: torch.dtype) -> Inexact:
        """Return the smaller of the numbers and a limit, which a device has as it is or in a dtype.

        Where all numbers that are correct lie beyond the limit, a device has the limit itself: the ends of the interval
        are limited, not its width.
        """
        stored = float(torch.tensor(limit, dtype=torch.float64).to(dtype))
        value = self.value.clamp(max=limit)
        most = (self.value + self.error).clamp(max=max(limit, stored))
        least = (self.value - self.error).clamp(max=min(limit, stored))
        return Inexact(value, torch.maximum(most - value, value - least))

    def minus(self, other: Inexact | float) -> Inexact:
        """Return the difference."""
        return self.plus(other.negated() if isinstance(other, Inexact) else -other)

    def square(self) -> Inexact:
        """Return the squares: ``(a + d)**2 - a**2``."""
        return Inexact(self.value.square(), (2 * self.value.abs() + self.error) * self.error)

    def abs(self) -> Inexact:
        """Return absolute values."""
        return Inexact(self.value.abs(), self.error)

    def sum(self, dim: int = -1, *, keepdim: bool = False) -> Inexact:
        """Return sums along an axis, added up in float32 in whatever order."""
        size = (self.value.abs() + self.error).sum(dim, keepdim=keepdim)
        error = self.error.sum(dim, keepdim=keepdim) + accumulation_error(self.value.shape[dim]) * size
        return Inexact(self.value.sum(dim, keepdim=keepdim), error)

    def mean(self, dim: int = -1, *, keepdim: bool = False) -> Inexact:
        """Return means along an axis: sums, divided, or multiplied by a reciprocal that is rounded."""
        return self.sum(dim, keepdim=keepdim).times(1 / self.value.shape[dim]).in_float32(2)

    def largest(self, dim: int = -1, *, keepdim: bool = False) -> Inexact:
        """Return the largest numbers along an axis; another number may be the largest on a device."""
        value = self.value.amax(dim, keepdim=keepdim)
        most = (self.value + self.error).amax(dim, keepdim=keepdim)
        least = (self.value - self.error).amax(dim, keepdim=keepdim)
        return Inexact(value, torch.maximum(most - value, value - least))

    def matmul(self, other: Inexact) -> Inexact:
        """Return the matrix product, whose sums are accumulated in float32."""
        mine, theirs = self.value.abs(), other.value.abs()
        error = mine @ other.error + self.error @ theirs + self.error @ other.error
        size = mine @ theirs + error
        return Inexact(self.value @ other.value, error + accumulation_error(self.value.shape[-1]) * size)

    def expected(self, dtype: torch.dtype) -> Expected:
        """Return what is expected of a device that stores these numbers in a dtype: one more rounding."""
        return Expected(self.value, self.stored(dtype).error, dtype)

    def negated(self) -> Inexact:
        """Return the numbers with their signs changed."""
        return Inexact(-self.value, self.error)

    def within(self, limit: float, dtype: torch.dtype) -> Inexact:
        """Return the numbers limited on both sides, as by ``at_most``."""
        return self.at_most(limit, dtype).negated().at_most(limit, dtype).negated()

    def rounded(self, dtype: torch.dtype) -> Inexact:
        """Return the numbers as a device goes on with them in a dtype; nothing is said of what may be infinite."""
        return Inexact(self.value, torch.maximum(self.stored(dtype).error, self.representable(dtype).error))

    def stored(self, dtype: torch.dtype) -> Inexact:
        """Return the numbers as a device returns them in a dtype, 0 as it is.

        Numbers beyond the range of the dtype keep their errors: who compares knows what they become.
        """
        size = self.value.abs() + self.error
        return Inexact(self.value, self.error + size * unit_roundoff(dtype) + underflow_step(dtype) * size.sign())

    def representable(self, dtype: torch.dtype) -> Inexact:
        """Return the numbers with nothing said of those that a dtype may not hold."""
        inside = self.value.abs() + self.error <= torch.finfo(dtype).max
        return Inexact(self.value, torch.where(inside, self.error, torch.inf))

    def in_float32(self, roundings: int = 1) -> Inexact:
        """Return the numbers after as many roundings to float32."""
        return Inexact(self.value, self.error + (self.value.abs() + self.error) * roundings * FLOAT32_ROUNDOFF)


def sigmoid(argument: Inexact) -> Inexact:
    """Return ``1 / (1 + exp(-x))`` as a device has it in float32.

    Its slope is ``s (1 - s)``, and at most ``exp(d)`` times as large within ``d`` of the argument. The exponential is a
    part ``1 - s`` of the denominator. Where it is computed as a power of two, the product with ``log2(e)`` and that
    constant are rounded. Sum and quotient round once each.
    """
    value = torch.sigmoid(argument.value)
    slope = value * torch.sigmoid(-argument.value)
    moved = slope * torch.expm1(argument.error.clamp(max=700.0))
    exponential = EXPONENTIAL_FUNCTION_ERROR + argument.value.abs() * 2 * FLOAT32_ROUNDOFF
    own = slope * exponential + value * 2 * FLOAT32_ROUNDOFF
    return Inexact(value, torch.minimum(moved, torch.ones(())) + own + torch.finfo(torch.float32).tiny)


def exp(argument: Inexact) -> Inexact:
    """Return ``exp(x)`` as a device has it in float32; its argument times ``log2(e)`` may be rounded, as may that."""
    value = argument.value.exp()
    moved = value * torch.expm1(argument.error.clamp(max=700.0))
    own = value * (EXPONENTIAL_FUNCTION_ERROR + argument.value.abs() * 2 * FLOAT32_ROUNDOFF)
    return Inexact(value, moved + own + _TINY)


def log(argument: Inexact) -> Inexact:
    """Return the natural logarithm of positive numbers; nothing is said where a device may have 0."""
    value = argument.value.log()
    moved = -torch.log1p(-(argument.error / argument.value).nan_to_num(nan=1.0).clamp(max=1.0))
    return Inexact(value, moved + _own_error(value))


SOFTPLUS_ABSOLUTE = 2 * FLOAT32_ROUNDOFF
"""What a softplus may be off by besides: no source says whether a device adds 1 to an exponential that is less than its
roundoff, which then is gone. 0 would ask for the logarithm of ``log1p``."""


def softplus(argument: Inexact) -> Inexact:
    """Return ``log(1 + exp(x))``. Its slope, a sigmoid, is largest where the argument is."""
    value = torch.logaddexp(argument.value, torch.zeros_like(argument.value))
    moved = argument.error * torch.sigmoid(argument.value + argument.error)
    return Inexact(value, moved + _own_error(value) + SOFTPLUS_ABSOLUTE)


def sqrt(argument: Inexact) -> Inexact:
    """Return the square root of numbers that are not negative, rounded twice."""
    value = argument.value.sqrt()
    least = (argument.value - argument.error).clamp(min=0.0).sqrt()
    size = value + least
    moved = torch.where(size > 0, argument.error / size, argument.error.sqrt())
    return Inexact(value, moved).in_float32(2)


def rsqrt(argument: Inexact) -> Inexact:
    """Return the reciprocal square root of positive numbers, rounded four times."""
    root = sqrt(argument)
    return Inexact.exact(torch.ones_like(root.value)).over(root).in_float32(4)


def tanh(argument: Inexact) -> Inexact:
    """Return the hyperbolic tangent. Its slope is largest where the argument is nearest to 0."""
    value = argument.value.tanh()
    nearest = (argument.value.abs() - argument.error).clamp(min=0.0)
    moved = argument.error * (1 - nearest.tanh().square())
    return Inexact(value, moved.clamp(max=2.0) + _own_error(value))


def erf(argument: Inexact) -> Inexact:
    """Return the error function. Its slope is largest where the argument is nearest to 0."""
    value = torch.erf(argument.value)
    nearest = (argument.value.abs() - argument.error).clamp(min=0.0)
    moved = argument.error * (2 / math.sqrt(math.pi)) * torch.exp(-nearest.square())
    return Inexact(value, moved.clamp(max=2.0) + ERF_ERROR)


def softmax(scores: Inexact, dim: int = -1) -> Inexact:
    """Return the softmax along an axis, of scores less their largest.

    A device subtracts the largest, which rounds once, and divides by the sum of exponentials. Each weight has its own
    error and that of the sum, which is the mean of those of its terms; an error that all scores of a row have in common
    cancels, which is not used here.
    """
    value = torch.softmax(scores.value, dim)
    distance = (scores.value.amax(dim, keepdim=True) - scores.value).nan_to_num(posinf=0.0)
    own = EXPONENTIAL_FUNCTION_ERROR + 3 * distance * FLOAT32_ROUNDOFF + torch.expm1(scores.error.clamp(max=700.0))
    of_sum = (value * own).sum(dim, keepdim=True) + accumulation_error(value.shape[dim])
    error = value * ((1 + own) * (1 + 2 * of_sum) - 1 + 2 * FLOAT32_ROUNDOFF)
    return Inexact(value, torch.where(of_sum < 0.25, error, torch.ones(())) + _TINY)  # both lie between 0 and 1


def _own_error(value: torch.Tensor) -> torch.Tensor:
    """Error of a function of the device itself."""
    return FUNCTION_ERROR * value.abs().clamp(min=FUNCTION_SCALE)
