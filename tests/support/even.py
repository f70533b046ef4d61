from __future__ import annotations

import math

import torch

from npudiff.draw.data import Stream


def evenly(shape, seed, name="even"):
    """Numbers spread evenly over [-1, 1), float64: roundings, as large as their bounds at most."""
    words = Stream(seed, name).random_uint64(math.prod(shape)).astype("float64")
    return torch.from_numpy(words / 2.0**63 - 1).reshape(shape)
