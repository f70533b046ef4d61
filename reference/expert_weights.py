"""Weight matrices of experts, as floats or as integers with scales, and products with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference.bounds import FLOAT32_ROUNDOFF
from reference.inexact import Inexact
from reference.linear import carried, product

FLOAT32_WHOLE_NUMBERS = 2**24
"""Whole numbers up to here are exact in float32."""

GROUP_PRODUCTS = torch.float16
"""In which int8 by int4 with several scales per column has the product of a group, and adds those of all groups."""

HALVES_ROUNDINGS = 4
"""Roundings to float32 where int8 by int4 is computed as two products: of each with its scale, and of their sums."""


@dataclass(frozen=True)
class ExpertWeights:
    """One matrix for each expert.

    Attributes
    ----------
    values : torch.Tensor
        ``[experts, inner, columns]``: a float dtype, or int8 with whole numbers of as many bits as ``bits``.
    bits : int
        8 or 4 for whole numbers, else 16.
    scale : torch.Tensor or None
        ``[experts, groups, columns]``: what a whole number is worth; each scale is for ``inner / groups`` rows.
    offset : torch.Tensor or None
        Of the same shape: added to whole numbers before they are scaled. Only for rows that are floats.
    bias : torch.Tensor or None
        ``[experts, columns]``. An int32 bias is added to the sums of whole numbers, any other to the result.
    """

    values: torch.Tensor
    bits: int = 16
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def experts(self) -> int:
        """Number of matrices."""
        return self.values.shape[0]


@dataclass(frozen=True)
class ExpertRows:
    """Rows of one expert, as a device has them.

    Attributes
    ----------
    values : Inexact
        ``[rows, inner]``; whole numbers where rows are quantised.
    scale : Inexact or None
        ``[rows]``: what a whole number is worth.
    quantised : bool
        Whether the values are whole numbers.
    """

    values: Inexact
    scale: Inexact | None = None
    quantised: bool = False


@dataclass(frozen=True)
class ExpertProduct:
    """Rows times the matrix of an expert, as a device has them.

    Attributes
    ----------
    value : torch.Tensor
        float64 ``[rows, columns]``.
    own : torch.Tensor
        The largest error that the product makes of itself.
    brought : torch.Tensor
        What the errors of the rows become, by ``reference.linear.carried``.
    """

    value: torch.Tensor
    own: torch.Tensor
    brought: torch.Tensor

    @property
    def inexact(self) -> Inexact:
        """The numbers with all of their error."""
        return Inexact(self.value, self.own + self.brought)


def times(rows: ExpertRows, weights: ExpertWeights, expert: int, dtype: torch.dtype) -> ExpertProduct:
    """Return rows times the matrix of an expert, as a device has them in a dtype, ``[rows, columns]``.

    ``((x @ w + bias) * scale) * token_scale`` for whole numbers with an int32 bias, ``x @ ((w + offset) * scale) +
    bias`` else (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018, eq. 4 without zero points).

    Notes
    -----
    A correct device adds whole numbers exactly, and floats in float32. int8 by int4 may be computed as 16 times the
    product of the high halves of the rows and that of the low ones; with several scales per column these products
    may be float16. Weights of floats' rows may be rounded to the dtype of the rows after offset and scale.
    """
    bias = None if weights.bias is None else weights.bias[expert]
    if rows.quantised:
        before = bias if bias is not None and bias.dtype == torch.int32 else None
        total, brought = _whole_sums(rows.values, weights, expert, before)
        if weights.scale is None:
            return ExpertProduct(total.value, total.error, brought)
        if rows.scale is not None:
            total, brought = total.times(_column(rows.scale)).in_float32(), brought * rows.scale.value.unsqueeze(1)
        bias = None if before is not None else bias
    else:
        matrix = _matrix(weights, expert, dtype)
        total = float_product(Inexact.exact(rows.values.value), matrix)
        brought = _carried(rows.values, matrix.value)
    if bias is not None:
        total = total.plus(Inexact.exact(bias)).in_float32()
    total = total.rounded(dtype)
    return ExpertProduct(total.value, total.error, brought)


def float_product(rows: Inexact, matrix: Inexact) -> Inexact:
    """Return float32 sums of rows and a matrix, each with errors that have nothing to do with each other."""
    exact = product(rows.value, matrix.value, torch.float32)
    return Inexact(exact.value, exact.own + _carried(rows, matrix.value) + _carried(matrix, rows.value, left=True))


def _carried(numbers: Inexact, other: torch.Tensor, *, left: bool = False) -> torch.Tensor:
    """What errors become in a product with numbers that have none; zeros without looking if there are none at all."""
    if not bool(numbers.error.any()):
        shape = (len(other), numbers.error.shape[1]) if left else (len(numbers.error), other.shape[1])
        return torch.zeros(shape, dtype=torch.float64)
    return carried(other, numbers.error) if left else carried(numbers.error, other)


def _matrix(weights: ExpertWeights, expert: int, dtype: torch.dtype) -> Inexact:
    """The matrix of an expert, float64 ``[inner, columns]``."""
    matrix = Inexact.exact(weights.values[expert])
    if weights.scale is None:
        return matrix
    rows = matrix.value.shape[0] // weights.scale.shape[1]
    if weights.offset is not None:
        matrix = matrix.plus(Inexact.exact(weights.offset[expert].repeat_interleave(rows, dim=0))).rounded(dtype)
    return matrix.times(Inexact.exact(weights.scale[expert].repeat_interleave(rows, dim=0))).rounded(dtype)


def _whole_sums(
    rows: Inexact, weights: ExpertWeights, expert: int, bias: torch.Tensor | None
) -> tuple[Inexact, torch.Tensor]:
    """Sums of whole numbers, scaled by column if there are scales, and what the errors of the rows become."""
    values = weights.values[expert]
    if weights.scale is not None and weights.scale.shape[1] > 1:
        return _in_groups(rows, values, weights.scale[expert])
    sums, brought = whole_product(rows, values, weights.bits)
    if bias is not None:
        sums = sums + bias
    if weights.scale is None:
        return Inexact.exact(sums), brought
    scale = Inexact.exact(weights.scale[expert])
    scaled = Inexact.exact(sums).times(scale).in_float32(2)
    return scaled if weights.bits == 8 else _plus_halves(scaled, values, scale), brought * scale.value


def _in_groups(rows: Inexact, matrix: torch.Tensor, scale: torch.Tensor) -> tuple[Inexact, torch.Tensor]:
    """Sums of products of both halves of rows with groups of a matrix, each in ``GROUP_PRODUCTS``."""
    groups, columns = scale.shape
    parts = matrix.to(torch.float32).view(groups, -1, columns)
    high = (rows.value / 16).floor()
    halves = torch.stack([high, rows.value - 16 * high - 8]).to(torch.float32).view(2, len(high), groups, -1)
    sums = torch.einsum("hrgk,gkc->ghrc", halves, parts).to(torch.float64)
    total = Inexact.exact(torch.zeros_like(sums[0]))
    for group in range(groups):
        term = Inexact.exact(sums[group]).rounded(GROUP_PRODUCTS).times(Inexact.exact(scale[group]))
        term = term.rounded(GROUP_PRODUCTS)
        total = total.plus(term).rounded(GROUP_PRODUCTS) if group else term
    scaled = (parts.sum(dim=1).to(torch.float64) * scale).sum(dim=0)
    value = 16 * total.value[0] + total.value[1] + 8 * scaled
    terms = 16 * total.value[0].abs() + total.value[1].abs() + 8 * scaled.abs()
    error = 16 * total.error[0] + total.error[1] + terms * HALVES_ROUNDINGS * FLOAT32_ROUNDOFF
    weighted = matrix * scale.to(torch.float64).repeat_interleave(matrix.shape[0] // groups, dim=0)
    return Inexact(value, error), _carried(rows, weighted)


def whole_product(rows: Inexact, matrix: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact sums of products of int8 in rows with int8 or int4 in a matrix, and what errors of rows become.

    Every partial sum is a whole number, or half of one where it is open which integer a row has. Where none can leave
    the range of exact ones, float32 does what float64 does.
    """
    largest = 2 * 2**7 * 2 ** (bits - 1) * matrix.shape[0]
    halves = bool((2 * rows.value == (2 * rows.value).round()).all())
    dtype = torch.float32 if halves and largest <= FLOAT32_WHOLE_NUMBERS else torch.float64
    narrow = matrix.to(dtype)
    sums = (rows.value.to(dtype) @ narrow).to(torch.float64)
    return sums, _carried(Inexact(rows.value, rows.error.to(dtype)), narrow).to(torch.float64)


def _plus_halves(scaled: Inexact, values: torch.Tensor, scale: Inexact) -> Inexact:
    """Add what computing with halves of the rows costs: terms larger than their sum, rounded to float32.

    ``x = 16 * high + low + 8`` with ``low`` in [-8, 7]. None of the three terms is
    larger than ``|x @ w| + 16 * sum(|w|)``, scaled.
    """
    sums = values.abs().sum(dim=0, dtype=torch.float64)
    terms = scaled.value.abs() + 16 * sums * scale.value
    return Inexact(scaled.value, scaled.error + terms * HALVES_ROUNDINGS * FLOAT32_ROUNDOFF)


def _column(numbers: Inexact) -> Inexact:
    return Inexact(numbers.value.unsqueeze(1), numbers.error.unsqueeze(1))
