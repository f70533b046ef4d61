"""Data that is moved and not computed: random bits, so that an element that went astray is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from npudiff.draw.data import Stream

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float32": torch.float32,
    "int32": torch.int32,
}

_WORDS = {1: "int8", 2: "int16", 4: "int32"}


def random_bits(stream: Stream, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return random bits as elements of a dtype: none is 0, and all are finite.

    The lowest bit is set, which tells data from zeros of padding. Of floats, the highest bit of the exponent is
    cleared. The tensor has a storage of its own: casts between formats work on whole storages.
    """
    count, size = math.prod(shape), dtype.itemsize
    bits = stream.random_uint64(-(-count * size // 8)).view(_WORDS[size])[:count] | 1
    if dtype.is_floating_point:
        bits &= ~(1 << 8 * size - 2)
    return torch.from_numpy(bits).view(dtype).reshape(tuple(shape)).clone()
