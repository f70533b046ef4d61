"""Weight matrices of experts, as floats or as integers with scales, and products with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from npudiff.reference.bounds import ACCUMULATION_CONFIDENCE, FLOAT32_ROUNDOFF, accumulation_error
from npudiff.reference.inexact import Inexact
from npudiff.reference.linear import carried
from npudiff.reference.weight_quant_matmul import dequantised_product

FLOAT32_WHOLE_NUMBERS = 2**24
"""Whole numbers up to here are exact in float32."""

GROUP_PRODUCTS = torch.float16
"""In which int8 by int4 with several scales per column has the product of a group, and adds those of all groups."""

CHANNEL_PRODUCTS = torch.float32
"""In which int8 by int4 with one scale per column has the products of both halves, once scaled. No source says."""

TILE_ELEMENTS = 2**18
"""Elements of a matrix that are widened at once."""

HALVES_ROUNDINGS = 4
"""Roundings to float32 where int8 by int4 is computed as two products: of each with its scale, and of their sums."""


@dataclass(frozen=True)
class ExpertWeights:
    """One matrix for each expert."""

    values: torch.Tensor
    """``[experts, inner, columns]``: a float dtype, or int8 with whole numbers of as many bits as ``bits``."""
    bits: int = 16
    """8 or 4 for whole numbers, else 16."""
    scale: torch.Tensor | None = None
    """``[experts, groups, columns]``: what a whole number is worth; each scale is for ``inner / groups`` rows."""
    offset: torch.Tensor | None = None
    """Of the same shape: added to whole numbers before they are scaled. Only for rows that are floats."""
    bias: torch.Tensor | None = None
    """``[experts, columns]``. An int32 bias is added to the sums of whole numbers, any other to the result."""

    @property
    def experts(self) -> int:
        """Number of matrices."""
        return self.values.shape[0]


@dataclass(frozen=True)
class ExpertRows:
    """Rows of one expert, as a device has them."""

    values: Inexact
    """``[rows, inner]``; whole numbers where rows are quantised."""
    scale: Inexact | None = None
    """``[rows]``: what a whole number is worth."""
    quantised: bool = False
    """Whether the values are whole numbers."""


@dataclass(frozen=True)
class ExpertProduct:
    """Rows times the matrix of an expert, as a device has them."""

    value: torch.Tensor
    """float64 ``[rows, columns]``."""
    independent: torch.Tensor
    """The largest error that the product makes of itself."""
    brought: torch.Tensor
    """What the errors of the rows become, by ``reference.linear.carried``."""

    def representable(self, dtype: torch.dtype) -> ExpertProduct:
        """Return the product with nothing said of what a dtype may not hold, for what goes on with it."""
        known = self.inexact.representable(dtype).error.isfinite()
        return ExpertProduct(self.value, torch.where(known, self.independent, torch.inf), self.brought)

    @property
    def inexact(self) -> Inexact:
        """The numbers with all of their error."""
        return Inexact(self.value, self.independent + self.brought)


def times(rows: ExpertRows, weights: ExpertWeights, expert: int, dtype: torch.dtype) -> ExpertProduct:
    """Return rows times the matrix of an expert, as a device has them in a dtype, ``[rows, columns]``.

    ``((x @ w + bias) * scale) * token_scale`` for whole numbers with an int32 bias, ``x @ ((w + offset) * scale) +
    bias`` else (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018, eq. 4 without zero points).

    Notes
    -----
    A correct device adds whole numbers exactly, and floats in float32. int8 by int4 may be computed as 16 times the
    product of the high halves of the rows and that of the low ones; with several scales per column these products
    may be float16. Integer weights of rows that are floats are dequantised as in ``reference.weight_quant_matmul``.
    """
    bias = None if weights.bias is None else weights.bias[expert]
    if rows.quantised:
        before = bias if bias is not None and bias.dtype == torch.int32 else None
        total, brought = _whole_sums(rows.values, weights, expert, before)
        if weights.scale is None:
            return ExpertProduct(total.value, torch.zeros_like(total.value), brought)
        if rows.scale is not None:
            scale = _column(rows.scale)
            brought = Inexact(torch.zeros_like(brought), brought).times(scale).error
            total = total.times(scale).in_float32()
        bias = None if before is not None else bias
    elif weights.scale is None:
        total, brought = float_product(rows.values, weights.values[expert])
    else:
        matrix, worth = _integers_and_scales(weights, expert, weights.scale)
        total = dequantised_product(rows.values.value, matrix, worth, dtype)
        brought = _carried(rows.values, matrix * worth)
    if bias is not None:
        total = total.plus(Inexact.exact(bias)).in_float32()
    total = total.stored(dtype)
    return ExpertProduct(total.value, total.error, brought)


def _carried(rows: Inexact, matrix: torch.Tensor) -> torch.Tensor:
    """What errors of rows become; zeros without looking if there are none at all."""
    if not bool(rows.error.any()):
        return torch.zeros(len(rows.error), matrix.shape[1], dtype=torch.float64)
    return carried(rows.error, matrix)


def float_product(rows: Inexact, matrix: torch.Tensor) -> tuple[Inexact, torch.Tensor]:
    """Return float32 sums of rows and a matrix that a device has as it is, and what errors of the rows become.

    The matrix is widened in tiles that stay in the cache of a processor.
    """
    columns = matrix.shape[1]
    uncertain = bool(rows.error.any())
    value, errors, squares = rows.value.new_zeros(3, len(rows.value), columns)
    for tile in _tiles(matrix):
        wide = matrix[tile].to(torch.float64)
        value += rows.value[:, tile] @ wide
        wide.square_()
        squares[0] += wide.sum(dim=0)
        if uncertain:
            errors += rows.error[:, tile].square() @ wide
    sizes = rows.value.norm(dim=1, keepdim=True) * squares[0].sqrt()
    return Inexact(value, sizes * accumulation_error(len(matrix))), ACCUMULATION_CONFIDENCE * errors.sqrt()


def _tiles(matrix: torch.Tensor) -> Iterator[slice]:
    rows = max(1, TILE_ELEMENTS // matrix.shape[1])
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))


def _integers_and_scales(weights: ExpertWeights, expert: int, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers with their offsets, and what each is worth, float64 ``[inner, columns]``."""
    matrix = weights.values[expert].to(torch.float64)
    rows = len(matrix) // scale.shape[1]
    if weights.offset is not None:
        matrix = matrix + weights.offset[expert].to(torch.float64).repeat_interleave(rows, dim=0)
    return matrix, scale[expert].to(torch.float64).repeat_interleave(rows, dim=0)


def _whole_sums(
    rows: Inexact, weights: ExpertWeights, expert: int, bias: torch.Tensor | None
) -> tuple[Inexact, torch.Tensor]:
    """Sums of whole numbers, scaled by column if there are scales, and what the errors of the rows become."""
    values = weights.values[expert]
    if weights.scale is not None and weights.scale.shape[1] > 1:
        return _in_groups(rows, values, weights.scale[expert])
    product = whole_product(rows, values, weights.bits)
    sums = product.sums if bias is None else product.sums + bias
    if weights.scale is None:
        return Inexact.exact(sums), product.brought
    scale = Inexact.exact(weights.scale[expert])
    scaled = Inexact.exact(sums).times(scale).in_float32(2)
    if weights.bits < 8:
        # with the halves of a row, ``x = 16 * high + low + 8``, no term is larger than this
        terms = scaled.value.abs() + 16 * product.sizes * scale.value.abs()
        halves = terms * HALVES_ROUNDINGS * FLOAT32_ROUNDOFF + _rounding_of_halves(rows, values, scale)
        scaled = Inexact(scaled.value, scaled.error + halves)
    return scaled, product.brought * scale.value.abs()


def _rounding_of_halves(rows: Inexact, matrix: torch.Tensor, scale: Inexact) -> torch.Tensor:
    """What rounding both products of halves to ``CHANNEL_PRODUCTS`` makes; float32 is counted already."""
    if torch.float32 == CHANNEL_PRODUCTS:
        return torch.zeros(())
    high = (rows.value / 16).floor()
    parts = (whole_product(Inexact.exact(half), matrix, 4).sums for half in (high, rows.value - 16 * high - 8))
    upper, lower = (Inexact.exact(part).times(scale).rounded(CHANNEL_PRODUCTS).error for part in parts)
    return 16 * upper + lower


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


class WholeProduct(NamedTuple):
    """Products of whole numbers, float64."""

    sums: torch.Tensor
    """``[rows, columns]``, exact."""
    brought: torch.Tensor
    """``[rows, columns]``: what errors of the rows become."""
    sizes: torch.Tensor
    """``[columns]``: sums of the absolute values of the matrix."""


def whole_product(rows: Inexact, matrix: torch.Tensor, bits: int) -> WholeProduct:
    """Return products of int8 in rows, ``[rows, inner]``, with int8 or int4 in a matrix, ``[inner, columns]``.

    Every partial sum is a whole number, or half of one where it is open which integer a row has. Where none of a tile
    can leave the range of exact ones, float32 does what float64 does.
    """
    largest = 2 * 2**7 * 2 ** (bits - 1) * min(matrix.shape[0], max(1, TILE_ELEMENTS // matrix.shape[1]))
    halves = bool((2 * rows.value == (2 * rows.value).round()).all())
    dtype = torch.float32 if halves and largest <= FLOAT32_WHOLE_NUMBERS else torch.float64
    value, squares = rows.value.to(dtype), rows.error.to(dtype).square()
    uncertain = bool(squares.any())
    sums, errors, sizes = torch.zeros(3, len(value), matrix.shape[1], dtype=torch.float64)
    for tile in _tiles(matrix):
        narrow = matrix[tile].to(dtype)
        sums += value[:, tile] @ narrow
        sizes[0] += narrow.abs().sum(dim=0)
        if uncertain:
            errors += squares[:, tile] @ narrow.square_()
    return WholeProduct(sums, ACCUMULATION_CONFIDENCE * errors.sqrt(), sizes[0])


def _column(numbers: Inexact) -> Inexact:
    return Inexact(numbers.value.unsqueeze(1), numbers.error.unsqueeze(1))
