"""Numbers near the ends of a dtype: where squares, sums and products leave it although every right result is inside."""

from __future__ import annotations

import torch

from npudiff.draw.data import Stream

EXPONENTS = {torch.float16: range(-24, 15), torch.bfloat16: range(-110, 121), torch.float32: range(-110, 121)}
"""Exponents of the largest number of a row: all of float16, subnormal numbers included, but for the last, which rounds
beyond it. Of the wider dtypes as far as a 127th of the number, 127 divided by it, and four times the number are normal
float32: what devices do with subnormal results, and with reciprocals that overflow, no source says."""

TO_THE_END = 3.99
"""Factor of ``large`` with which the largest are as large as float16 allows; sums in float32 have room beyond that."""

_LARGEST = {torch.float16: 2.0**14, torch.bfloat16: 2.0**100, torch.float32: 2.0**100}
_SMALL = {torch.float16: 2.0**-18, torch.bfloat16: 2.0**-100, torch.float32: 2.0**-100}


def of_exponents(rows: torch.Tensor, dtype: torch.dtype, stream: Stream) -> torch.Tensor:
    """Return rows times powers of two, so that the largest magnitude of each has an exponent of its own.

    Every second row is at an end of ``EXPONENTS``, the first one at the lower, and the others are anywhere in between.

    Parameters
    ----------
    rows : torch.Tensor
        float32 ``[rows, width]``.
    dtype : torch.dtype
        What they are rounded to later.
    stream : Stream
        Where the exponents come from.
    """
    exponents = EXPONENTS[dtype]
    drawn = stream.integers(exponents.start, exponents.stop, len(rows))
    ends = (exponents.start, exponents.stop - 1)
    wanted = [ends[place // 2 % 2] if place % 2 == 0 else drawn[place] for place in range(len(rows))]
    largest = rows.abs().amax(dim=1)
    present = torch.frexp(torch.where(largest == 0, 1.0, largest)).exponent - 1
    return torch.ldexp(torch.ldexp(rows, -present.unsqueeze(1)), torch.tensor(wanted).unsqueeze(1))


def places_of_largest(stream: Stream, width: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and, for each, a column for its largest number: anywhere, and of every third row the last one.

    What looks at whole vectors or blocks alone misses what stands behind them.
    """
    columns = stream.integer_array(0, width, rows)
    columns[1::3] = width - 1
    return torch.arange(rows), torch.from_numpy(columns)


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
