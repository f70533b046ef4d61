"""Weight matrices of experts: how a case says what they are, and how they are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from npudiff.draw.data import Stream
from npudiff.reference.expert_weights import ExpertWeights

FORMS = ("float", "w8a8", "w4a8", "w8a16", "w4a16")
"""float: as the rows. w8a8, w4a8: int8 or int4, for rows of int8. w8a16, w4a16: the same, for rows that are floats."""

BITS = {"float": 16, "w8a8": 8, "w4a8": 4, "w8a16": 8, "w4a16": 4}


POOL = 2**22
"""Different numbers of a matrix, at most."""


@dataclass(frozen=True)
class Shape:
    """Sizes and form of the matrices of all experts."""

    experts: Sequence[int]
    """Their numbers. A matrix depends on the number of its expert, not on which others there are."""
    inner: int
    columns: int
    """Of each matrix."""
    form: str
    """One of ``FORMS``."""
    groups: int
    """Scales of each column."""
    dtype: torch.dtype
    """Of floats, and of scales and offsets for rows that are floats."""


def build(shape: Shape, seed: int, name: str, extreme: bool = False) -> ExpertWeights:
    """Return matrices of which a product with normal rows, or with int8 worth about 0.01, is about normal.

    Whole numbers take all values, or only the largest of both signs if they are to be extreme: then columns have one
    sign and sums grow as far as they can, but for a last row that makes some of them odd. Scales differ from column to
    column; those of int4 for int8 rows have 11 bits.
    """
    bits = BITS[shape.form]
    kind = shape.dtype if bits == 16 else torch.int8
    values = torch.empty(len(shape.experts), shape.inner, shape.columns, dtype=kind)
    for matrix, expert in zip(values, shape.experts, strict=True):
        matrix.copy_(_matrix(shape, Stream(seed, f"{name} {expert}"), extreme))
    if bits == 16:
        return ExpertWeights(values)
    spread = torch.stack([_spread(shape, Stream(seed, f"{name} scale {expert}")) for expert in shape.experts])
    typical = (1 << bits - 1) * math.sqrt(shape.inner) * (0.5 if shape.form.endswith("a8") else 1.0)
    scale = (1 + spread.abs()) / typical
    if shape.form == "w4a8":
        scale = scale.to(torch.float16)  # what the operator's documentation asks for
    return ExpertWeights(values, bits, scale.to(shape.dtype if shape.form.endswith("a16") else torch.float32))


def _spread(shape: Shape, stream: Stream) -> torch.Tensor:
    return stream.normal((shape.groups, shape.columns), torch.float32)


def _matrix(shape: Shape, stream: Stream, extreme: bool) -> torch.Tensor:
    size = (shape.inner, shape.columns)
    bits = BITS[shape.form]
    if bits == 16:
        parts = (stream.normal((1, min(size[0] * size[1], POOL)), torch.float32) / math.sqrt(shape.inner)).to(
            shape.dtype
        )
        return _from_pool(stream, parts.flatten(), size)
    if extreme:
        signs = torch.tensor(stream.integers(0, 2, shape.columns)) == 1
        largest = (1 << bits - 1) - 1
        column: torch.Tensor = torch.where(signs, -largest - 1, largest)
        values = column.to(torch.int8).repeat(shape.inner, 1)
        values[-1] = 2
        return values
    values = whole_numbers(stream, (1, min(size[0] * size[1], POOL))).flatten()
    return _from_pool(stream, values if bits == 8 else torch.bitwise_right_shift(values, 4), size)


def _from_pool(stream: Stream, pool: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A matrix of the numbers of a pool: all in their order, or for larger ones, each row from some place on."""
    inner, columns = size
    if inner * columns == len(pool):
        return pool.view(size)
    src_to_dst_row = torch.tensor(stream.integers(0, len(pool) - columns + 1, inner))
    return pool.unfold(0, columns, 1)[src_to_dst_row]


def whole_numbers(stream: Stream, shape: tuple[int, int]) -> torch.Tensor:
    """Return int8 of all values."""
    count = shape[0] * shape[1]
    return torch.from_numpy(stream.random_uint64(-(-count // 8)).view("int8")[:count]).reshape(shape)


def lying(weights: ExpertWeights, transposed: bool) -> ExpertWeights:
    """Return the same weights, each matrix a transposed view as of ``[columns, inner]`` if it is to be."""
    if not transposed:
        return weights
    turned = weights.values.transpose(1, 2).contiguous().transpose(1, 2)
    return ExpertWeights(turned, weights.bits, weights.scale, weights.offset, weights.bias)
