"""Numbers near the ends of a dtype: where squares, sums and products leave it although every right result is inside."""

from __future__ import annotations

import torch

_LARGEST = {torch.float16: 2.0**14, torch.bfloat16: 2.0**100, torch.float32: 2.0**100}
_SMALL = {torch.float16: 2.0**-18, torch.bfloat16: 2.0**-100, torch.float32: 2.0**-100}


def large(numbers: torch.Tensor, dtype: torch.dtype, factor: float = 1.0) -> torch.Tensor:
    """Return numbers of the same signs between 0.75 and 1 times the largest that is drawn of a dtype.

    Of float16 that is ``factor`` times a quarter of what it holds: sums of four stay inside, most of more do not. Of
    the wider dtypes it is so much that squares leave float32.

    Parameters
    ----------
    numbers : torch.Tensor
        Normal numbers, at most 3.75 in magnitude.
    dtype : torch.dtype
        What they are rounded to later.
    factor : float
        By what they are multiplied.
    """
    return torch.copysign(0.75 + numbers.abs() / 15, numbers) * (factor * _LARGEST[dtype])


def small(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return normal numbers as subnormal ones of float16, which a kernel may lose that takes them for zero.

    Whether a device keeps those of the wider dtypes is not known: of these numbers are so small that squares vanish.
    """
    return numbers * _SMALL[dtype]
