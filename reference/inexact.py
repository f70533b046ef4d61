"""Numbers with their errors: how far a correct device may be after a chain of elementwise operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import EXPONENTIAL_FUNCTION_ERROR, FLOAT32_ROUNDOFF, underflow_step, unit_roundoff


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
