"""Rounding to 8 and 4 bits, against torch's casts and a search among all numbers of a format."""

import math

import pytest
import torch

from npudiff.device.simulator.block_scaled import small_floats as small

BY_NAME = {
    "e4m3": small.FLOAT8_E4M3FN, "e5m2": small.FLOAT8_E5M2, "e2m1": small.FLOAT4_E2M1, "e1m2": small.FLOAT4_E1M2,
}  # fmt: skip


def values(name, ocp):
    """Every number of a format, the middles, and what is just beside these."""
    numbers = torch.tensor(ocp.grid(name))
    middles = (numbers[1:] + numbers[:-1]) / 2
    edges = torch.cat([numbers, middles, numbers[-1:] * 1.01, numbers[-1:] * 100, torch.rand(200) * numbers[-1]])
    infinity = torch.tensor(math.inf)
    near = torch.cat([edges, edges.nextafter(infinity), edges.nextafter(-infinity)])
    return torch.cat([near, -near])


@pytest.mark.few(6)
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("mode", small.ROUND_MODES)
def test_every_number_goes_to_its_neighbour(ocp, name, mode):
    given = values(name, ocp)
    numbers = BY_NAME[name].on_grid(given, mode)
    expected = torch.tensor([ocp.nearest(value, name, mode) for value in given.tolist()])
    assert torch.equal(numbers, expected)
    assert torch.equal(numbers.signbit(), given.signbit())


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_float8_is_torchs_cast_of_what_does_not_exceed_it(ocp, name):
    given = values(name, ocp)
    largest = BY_NAME[name].largest
    given = given[given.abs() <= largest]
    given = torch.cat([given, torch.tensor([math.nan])])
    ours, torchs = BY_NAME[name].cast(given), given.to(BY_NAME[name].dtype)
    assert ours.dtype == torchs.dtype
    assert torch.equal(ours.float().nan_to_num(7), torchs.float().nan_to_num(7))
    assert BY_NAME[name].cast(torch.tensor([math.inf, -1e30])).float().tolist() == [largest, -largest]


def test_the_first_number_lies_in_the_lower_bits():
    """Codes of e2m1 are 0 to 7 for 0, 0.5, 1, 1.5, 2, 3, 4, 6, and 8 more for the sign."""
    given = torch.tensor([[0.5, -6, 1.5, 0.0], [-0.0, 4, math.nan, 2]])
    packed = small.FLOAT4_E2M1.cast(given)
    assert packed.tolist() == [[0xF1, 0x03], [0x68, 0x40]]
    assert small.FLOAT4_E2M1.numbers(packed).tolist() == [[0.5, -6, 1.5, 0], [-0.0, 4, 0, 2]]
    assert small.FLOAT4_E1M2.cast(torch.tensor([0.25, -1.75])).tolist() == [0xF1]
    assert small.FLOAT8_E5M2.numbers(torch.tensor([1.5]).to(torch.float8_e5m2)).tolist() == [1.5]


def test_powers_of_two_are_exact_down_to_the_subnormal_one():
    exponents = torch.arange(-127, 128)
    assert small.power_of_two(exponents).tolist() == [2.0**e for e in range(-127, 128)]
