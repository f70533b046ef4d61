"""Likely mistakes are told where all numbers agree, and never where anything would be explained."""

from __future__ import annotations

import math

import pytest
import torch

from npudiff.judge.compare import compare
from npudiff.judge.mistakes import likely_mistakes
from npudiff.reference.bounds import Expected

GENERATOR = torch.Generator().manual_seed(5)


def told(change, rows=5, columns=4, dtype=torch.float32, bound=1e-5):
    value = torch.randn(rows, columns, generator=GENERATOR, dtype=torch.float64)
    bounds = value.abs() * bound + bound * 1e-3
    actual = change(value).to(dtype)
    (output,) = compare({"y": Expected(value, bounds, dtype)}, {"y": actual}).outputs
    assert output.worst > 1
    return likely_mistakes(output)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x / math.log(2), "every element is 1 / ln 2 (1.443) times what is right: a logarithm to base 2"),
        (lambda x: x * math.log(2), "every element is ln 2 (0.6931) times what is right"),
        (lambda x: -x, "every element is with the other sign"),
        (torch.zeros_like, "every element is 0"),
        (lambda x: x * 2, "every element is twice what is right"),
        (lambda x: x * 1.05, "every element is 1.05 times what is right"),
        (lambda x: x + 3, "every element is 3 too large"),
        (lambda x: x - 0.25, "every element is 0.25 too small"),
        (lambda x: x.roll(1, 0), "each row holds what belongs to the row before it"),
        (lambda x: x.roll(-1, 0), "each row holds what belongs to the row after it"),
    ],
)
def test_what_one_change_makes_is_named(change, text):
    (line,) = told(change)
    assert line.startswith(text)


def test_exchanged_axes():
    assert told(lambda x: x.T.contiguous(), rows=4) == ["the last two axes are exchanged"]


def test_in_16_bits_what_was_rounded_after_it_is_seen_too():
    assert told(lambda x: x * 1.05, rows=20, dtype=torch.bfloat16, bound=2.0**-8) == [
        "every element is 1.05 times what is right"
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + torch.randn(x.shape, generator=GENERATOR, dtype=torch.float64) * 0.1,
        lambda x: torch.cat([x[:1] * 1.05, x[1:]]),
        lambda x: torch.cat([x[1:] * 1.05, x[:1] * 1.06]),
        lambda x: x * torch.nan,
        lambda x: x * torch.inf,
    ],
)
def test_what_no_single_change_makes_is_not(change):
    assert told(change) == []


def test_one_element_or_equal_ones_say_nothing_and_two_say_a_factor():
    assert told(lambda x: x * 1.05, rows=1, columns=1) == []
    assert told(lambda x: x * 1.05, rows=1, columns=2) == ["every element is 1.05 times what is right"]
    assert told(lambda x: x + 3, rows=1, columns=2) == []
    value = torch.full((4, 4), 2.0, dtype=torch.float64)
    (output,) = compare({"y": Expected(value, value * 1e-6, torch.float32)}, {"y": value.float() * 3}).outputs
    assert likely_mistakes(output) == []


def test_what_is_not_specified_may_hold_anything_and_integers_say_nothing():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    bound = torch.tensor([1e-6, 1e-6, torch.inf, 1e-6], dtype=torch.float64)
    actual = torch.tensor([2.0, 4.0, torch.nan, 8.0])
    (output,) = compare({"y": Expected(value, bound, torch.float32)}, {"y": actual}).outputs
    assert likely_mistakes(output) == ["every element is twice what is right"]
    ints = torch.arange(1, 5)
    (output,) = compare({"y": Expected(ints, torch.zeros(4), torch.int64)}, {"y": ints * 2}).outputs
    assert likely_mistakes(output) == []
