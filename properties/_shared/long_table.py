"""Tables of cosines and sines that are long, and cheap to make."""

from __future__ import annotations

import torch

from npudiff.draw.data import Stream

LONG_TABLE, ROW_STEP = 10_000, 7
"""Tables with more rows are views of one stream of numbers, in which each row begins so many further than the last: a
million rows from a few million draws, and rows that overlap in memory."""


def table_of_numbers(seed: int, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return ``[rows, columns]`` of numbers, not cosines: then no two entries that may be mixed up are alike."""
    stream = Stream(seed, "table")
    if rows <= LONG_TABLE:
        return (stream.normal((rows, columns), torch.float32) * 0.5).to(dtype)
    count = (rows * ROW_STEP + columns,)
    if dtype.itemsize == 2:  # half of a rounded number is the rounded half: neither is subnormal
        return stream.normal(count, dtype).mul_(0.5).as_strided((rows, columns), (ROW_STEP, 1))
    return (stream.normal(count, torch.float32) * 0.5).to(dtype).as_strided((rows, columns), (ROW_STEP, 1))
