"""Small floats as lists of their numbers, and a block's exponent, one element at a time with Python's own numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

# What OCP's formats have: (exponent bits' bias, mantissa bits, highest exponent, largest).
FORMATS = {
    "e4m3": (-6, 3, 8, 448.0, 292, torch.float8_e4m3fn),
    "e5m2": (-14, 2, 15, 57344.0, 291, torch.float8_e5m2),
    "e2m1": (0, 1, 2, 6.0, 296, torch.uint8),
    "e1m2": (0, 2, 0, 1.75, 297, torch.uint8),
}


def grid(name):
    """Return all magnitudes of a format in the order of their codes."""
    low, mantissa, high, largest = FORMATS[name][:4]
    count = 1 << mantissa
    numbers = [i * 2.0 ** (low - mantissa) for i in range(count)]
    numbers += [(1 + i / count) * 2.0**e for e in range(low, high + 1) for i in range(count)]
    return [number for number in numbers if number <= largest]


def nearest(value, name, mode="rint"):
    """Round one number to a format, by looking at its neighbours."""
    if math.isnan(value):
        return value
    numbers = grid(name)
    magnitude = min(abs(value), numbers[-1])
    upper = next(i for i, number in enumerate(numbers) if number >= magnitude)
    lower = upper if numbers[upper] == magnitude else upper - 1
    if mode == "floor":
        code = upper if value < 0 else lower
    else:
        below, above = magnitude - numbers[lower], numbers[upper] - magnitude
        even = lower if lower % 2 == 0 else upper  # the last bit of a code is that of the mantissa
        middle = even if mode == "rint" else upper
        code = lower if below < above else upper if above < below else middle
    return math.copysign(numbers[code], value)


def unpack(tensor, name):
    """Return what a quantised tensor holds, as float64."""
    if tensor.dtype != torch.uint8:
        return tensor.double()
    numbers = grid(name)
    codes = torch.stack((tensor & 15, tensor >> 4), -1).flatten(-2)
    return torch.tensor([-numbers[c - 8] if c > 7 else numbers[c] for c in codes.flatten().tolist()]).view(codes.shape)


def exponent(largest):
    """Return floor(log2) of a positive number, without a logarithm."""
    return math.frexp(largest)[1] - 1


@pytest.fixture(scope="session")
def ocp():
    return SimpleNamespace(formats=FORMATS, grid=grid, nearest=nearest, unpack=unpack, exponent=exponent)
