"""Memory that an operator allocates and does not write.

On hardware it holds what was there before, nearly always finite. A test must see when it is used, and
production multiplies such rows by 0, so that a NaN would raise false alarms. Every byte is ``POISON_BYTE``,
which is finite in each dtype and unlike any activation: 203.25 in float16, about 1.5e16 in bfloat16 and
float32 (whose square is still finite), 90 in int8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

POISON_BYTE = 0x5A


def unwritten(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate a tensor of which every byte is ``POISON_BYTE``.

    Parameters
    ----------
    shape : sequence of int
        Any shape.
    dtype : torch.dtype
        Any dtype.

    Returns
    -------
    Tensor
        A new tensor on the CPU.
    """
    size = math.prod(shape) * dtype.itemsize
    return torch.full((size,), POISON_BYTE, dtype=torch.uint8).view(dtype).view(tuple(shape))
