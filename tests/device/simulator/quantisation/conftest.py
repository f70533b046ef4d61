"""Exact arithmetic for small cases: fractions, and rounding of fractions to float32 and to integers."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile


def round32(value):
    """Round a fraction to the nearest float32, ties to even; normal numbers only."""
    value = Fraction(value)
    if not value:
        return value
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    return round(value / unit) * unit  # round() of a Fraction goes to even


def fractions(tensor):
    """Return the exact values of a tensor as nested lists."""
    return [fractions(row) for row in tensor] if tensor.dim() else Fraction(tensor.item())


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def integers(*shape, low=-128, high=128, dtype=torch.int8, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def nibbles(word):
    """Return the eight integers of 4 bits of a word, the lowest bits first."""
    digits = [(word >> shift) & 15 for shift in range(0, 32, 4)]
    return [digit - 16 if digit > 7 else digit for digit in digits]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


@pytest.fixture(scope="session")
def exact():
    return SimpleNamespace(
        round32=round32, fractions=fractions, draw=draw, integers=integers, nibbles=nibbles, changed=changed
    )
