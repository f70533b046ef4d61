"""Products of matrices of integers, exact."""

from __future__ import annotations

import torch
from torch import Tensor

# Float32 has every integer up to here, so that sums that stay below are exact in any order.
_EXACT_IN_FLOAT32 = 2**24


def integer_product(left: Tensor, right: Tensor, largest: int) -> Tensor:
    """Return ``left @ right`` of integers.

    Parameters
    ----------
    left : Tensor
        [..., m, k], int8.
    right : Tensor
        [..., k, n], int8; batch axes broadcast.
    largest : int
        The largest product of two elements. Times k it is below 2^53.

    Returns
    -------
    Tensor
        int64, [..., m, n].
    """
    exact = torch.float32 if left.shape[-1] * largest <= _EXACT_IN_FLOAT32 else torch.float64
    return (left.to(exact) @ right.to(exact)).to(torch.int64)
