"""Rounding, saturation, and eight integers in a word."""

import math

import pytest
import torch

from npudiff.device.simulator.quantisation.integers import INT4, INT8, packed, rounded, saturated, unpacked

HALVES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]


def test_halves():
    assert rounded(torch.tensor(HALVES)).tolist() == [-2, -2, 0, 0, 2, 2]
    assert rounded(torch.tensor(HALVES), "half_away_from_zero").tolist() == [-3, -2, -1, 1, 2, 3]


def test_just_below_a_half_is_no_half():
    below = math.nextafter(0.5, 0.0)
    assert rounded(torch.tensor([below, -below], dtype=torch.float64), "half_away_from_zero").tolist() == [0, 0]
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
    assert rounded(below.view(1), "half_away_from_zero").tolist() == [0]


@pytest.mark.parametrize(("limits", "expected"), [(INT8, [-128, -128, 127, 127]), (INT4, [-8, -8, 7, 7])])
def test_saturation(limits, expected):
    assert saturated(torch.tensor([-math.inf, -1e30, 1e30, math.inf]), limits, torch.int8).tolist() == expected


def test_nan_is_a_choice(exact):
    nan = torch.tensor([math.nan, 3.0])
    assert saturated(nan, INT8, torch.int8).tolist() == [0, 3]
    with exact.changed(nan_as_integer=-128):
        assert saturated(nan, INT8, torch.int8).tolist() == [-128, 3]


def test_the_first_integer_has_the_lowest_bits():
    row = [1, -1, 7, -8, 0, 2, -3, 5]
    word = sum((value & 15) << 4 * place for place, value in enumerate(row))
    assert packed(torch.tensor([row])).tolist() == [[word]]
    assert packed(torch.tensor([[0] * 7 + [-8]])).tolist() == [[-(2**31)]]
    assert packed(torch.tensor([[-1] * 8])).tolist() == [[-1]]


def test_only_four_bits_count():
    assert packed(torch.tensor([[16, 17, -17, 8, 0, 0, 0, 0]])).tolist() == [[0x8F10]]


def test_unpacking_is_the_way_back(exact):
    values = exact.integers(3, 2, 24, low=-8, high=8)
    assert torch.equal(unpacked(packed(values)), values)
    words = packed(values)
    assert unpacked(words)[1, 1, 8:16].tolist() == exact.nibbles(words[1, 1, 1].item())
    assert unpacked(words[:0]).shape == (0, 2, 24)
