"""Products with a weight matrix, and how the errors of their inputs come out of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import ACCUMULATION_CONFIDENCE, accumulation_error, underflow_step, unit_roundoff


@dataclass(frozen=True)
class Product:
    """Rows times a matrix, as a device computes them."""

    value: torch.Tensor
    """float64 ``[rows, columns]``."""
    independent: torch.Tensor
    """Error of each element that has nothing to do with the others': float32 accumulation, and the rounding of the
    result to the dtype of the device."""


def product(rows: torch.Tensor, matrix: torch.Tensor, dtype: torch.dtype) -> Product:
    """Multiply float64 ``[..., rows, inner]`` with float64 ``[..., inner, columns]``.

    The sum of absolute products, on which the accumulation error rests, is bounded by Cauchy and Schwarz.
    """
    value = rows @ matrix
    columns = matrix.to(torch.float32).square_().sum(dim=-2, keepdim=True).sqrt().to(torch.float64)
    sizes = rows.norm(dim=-1, keepdim=True) * columns
    accumulated = sizes * accumulation_error(rows.shape[-1])
    return Product(value, accumulated + (value.abs() + accumulated) * unit_roundoff(dtype) + underflow_step(dtype))


def carried_gain(
    errors: torch.Tensor, matrix: torch.Tensor, value: torch.Tensor, before: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what errors as those of ``carried`` become in the gain of the rows ``value``, ``[..., rows, columns]``.

    The gain error is a product with one more matrix: ``value / sum(value**2)`` of each row. Where something linear comes
    between product and ``value``, ``before`` is its transpose times ``value``.
    """
    before = value if before is None else before
    along = before @ matrix.transpose(-1, -2) / value.square().sum(dim=-1, keepdim=True)
    return ACCUMULATION_CONFIDENCE * (errors * along).square().sum(dim=-1).sqrt()


def carried(errors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return what errors of ``[rows, inner]``, each bounded and none with anything to do with another, become.

    A sum of independent errors of mean zero, each within its bound, stays within ``factor`` times the root of the sum
    of squares of their bounds except with probability ``2 exp(-factor**2 / 2)`` (Hoeffding, 1963; it is what N. Higham
    and T. Mary use for sums). The worst case, all errors of one sign, is ``sqrt(inner)`` times larger, is never met,
    and would hide any bug.
    """
    return ACCUMULATION_CONFIDENCE * (errors.square() @ matrix.square()).sqrt()
