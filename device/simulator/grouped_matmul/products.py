"""Sums of products: float32 for floating point, exact for integers, as int32 accumulators are."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of a weight that become float32 at a time; a whole one would go through memory that is touched once.
_PIECE = 2**20

# float32 adds integers exactly up to here.
_EXACT = 2**24
INT8_PRODUCT = 2**14
"""Largest magnitude of a product of two int8."""
INT4_PRODUCT = 2**6
"""Largest magnitude of a product of two int4."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply floating-point matrices [rows, inner] and [inner, columns]; float32 [rows, columns].

    The order in which a device adds is not said.
    """
    total = x.new_zeros((len(x), weight.shape[1]), dtype=torch.float32)
    step = max(64, _PIECE // max(weight.shape[1], 1))
    for start in range(0, len(weight), step):
        piece = slice(start, start + step)
        total.addmm_(x[:, piece].float(), weight[piece].float())
    return total


def integer_product(x: Tensor, weight: Tensor, largest: int) -> Tensor:
    """Multiply integer matrices [rows, inner] and [inner, columns] exactly.

    Parameters
    ----------
    x, weight : Tensor
        int8.
    largest : int
        No product of two elements is larger.

    Returns
    -------
    Tensor
        int32 [rows, columns].
    """
    total = x.new_zeros((len(x), weight.shape[1]), dtype=torch.int32)
    step = min(_EXACT // largest, max(64, _PIECE // max(weight.shape[1], 1)))
    for start in range(0, len(weight), step):
        piece = slice(start, start + step)
        total += (x[:, piece].float() @ weight[piece].float()).int()
    return total
