"""Gain errors: what correct devices stay within, and what no single element shows."""

from __future__ import annotations

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare, gain_error
from npudiff.reference.bounds import gain_bound, rounding_gain, unit_roundoff
from npudiff.reference.linear import carried_gain
from npudiff.reference.rms_norm import RmsNormInputs, rms_norm


def random(*shape, name="x", dtype=torch.float32):
    return Stream(7, name).normal(shape, torch.float32).to(dtype)


def inputs(kind, dtype, residual, size, tokens=60):
    other = random(tokens, size, name="residual", dtype=dtype) if residual else None
    weight = 0.1 * random(size, name="weight") + (0.0 if kind == "gemma" else 1.0)
    return RmsNormInputs(random(tokens, size, dtype=dtype), other, weight.to(dtype), 1e-5, kind)


def normed(given, factor=lambda rstd: rstd, last=lambda wide, dtype: wide.to(dtype), early=False):
    """A norm in float32 whose factor and last rounding can be spoilt."""
    dtype = given.hidden.dtype
    wide = (given.hidden if given.residual is None else given.hidden + given.residual).float()
    rstd = factor(torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + given.epsilon))
    states = (wide * rstd).to(dtype).float() if early else wide * rstd
    return last(states * (given.weight.float() + (1.0 if given.kind == "gemma" else 0.0)), dtype)


def truncated(wide, dtype):
    """Rounding towards zero."""
    near = wide.to(dtype)
    beyond = near.float().abs() > wide.abs()
    return torch.where(beyond, torch.nextafter(near, torch.zeros_like(near)), near)


CASES = [
    (kind, dtype, residual)
    for kind in ("plain", "gemma")
    for dtype in (torch.bfloat16, torch.float16)
    for residual in (False, True)
]


@pytest.mark.parametrize(("kind", "dtype", "residual"), CASES)
@pytest.mark.parametrize("size", [64, 576, 4096])
@pytest.mark.parametrize("early", [False, True])
def test_correct_norms_stay_within_it_and_come_near_it(kind, dtype, residual, size, early):
    given = inputs(kind, dtype, residual, size)
    (output,) = compare(rms_norm(given), {"output": normed(given, early=early)}).outputs
    assert output.gain.shape == (60,)
    assert 0.03 < float(output.gain_ratio.max()) < 1  # the least where there are most roundings to allow for
    assert output.worst <= 1


@pytest.mark.parametrize(("kind", "dtype", "residual"), CASES)
@pytest.mark.parametrize("spoilt", ["factor", "truncation"])
def test_what_all_elements_have_in_common_is_seen_though_each_is_within_its_bound(kind, dtype, residual, spoilt):
    given = inputs(kind, dtype, residual, 4096)
    if spoilt == "factor":
        wrong = normed(given, factor=lambda rstd: rstd.to(dtype).float())
    else:
        wrong = normed(given, last=truncated)
    (output,) = compare(rms_norm(given), {"output": wrong}).outputs
    assert float(output.ratio.max()) <= 1
    assert output.only_gain


@pytest.mark.parametrize("factor", [1.0, 1.001, 0.9985])
def test_rows_on_a_grid_that_round_back_to_themselves_are_right(factor):
    """A weight of 1, and a factor near 1: every element has the same rounding error."""
    hidden = random(40, 512, dtype=torch.bfloat16)
    rms = hidden.float().square().mean(dim=-1, keepdim=True).sqrt()
    hidden = (hidden.float() / rms * factor).bfloat16()
    given = RmsNormInputs(hidden, None, torch.ones(512, dtype=torch.bfloat16), 1e-6, "plain", "once")
    (output,) = compare(rms_norm(given), {"output": normed(given)}).outputs
    assert output.worst <= 1
    if factor != 1.0:
        independent = gain_bound(output.value, output.value.abs() * unit_roundoff(torch.bfloat16))
        assert float((output.gain.abs() / independent).max()) > 1, "without rounding_gain it would be an alarm"


def test_independent_errors_go_by_hoeffding_and_shared_ones_as_they_are():
    value = random(3, 100).double()
    own = value.abs() * 0.01
    signs = torch.where(torch.arange(100) % 2 == 0, 1.0, -1.0)
    right = 4 * (own * value).square().sum(dim=-1).sqrt() / value.square().sum(dim=-1)
    assert torch.allclose(gain_bound(value, own), right)
    assert torch.allclose(gain_bound(value, own, 0.25), right + 0.25)
    assert bool((gain_error(value + own * signs, value).abs() < right).all())
    assert torch.allclose(gain_error(1.25 * value, value), torch.full((3,), 0.25, dtype=torch.float64))
    assert gain_bound(torch.zeros(1, 4), torch.ones(1, 4)).tolist() == [torch.inf]


def test_a_rounding_is_that_of_the_row_at_hand():
    value = torch.tensor([[1.0, 2.0, -4.0]], dtype=torch.float64)
    assert rounding_gain(value, value, torch.bfloat16).tolist() == [0.0]
    off = value * (1 + 2.0**-10)
    expected = float(((value - off) * off).sum() / (off * off).sum())
    assert rounding_gain(off, off, torch.bfloat16).tolist() == [pytest.approx(abs(expected))]
    halves = rounding_gain(off, off * 2, torch.bfloat16, factor=0.5)
    assert halves.tolist() == [pytest.approx(abs(expected))]
    assert rounding_gain(torch.zeros(1, 3), torch.ones(1, 3) / 3, torch.bfloat16).tolist() == [0.0]


def test_errors_that_pass_a_product_are_worth_what_they_do_to_the_row():
    rows, matrix = random(5, 40, name="rows").double(), random(40, 30, name="matrix").double()
    errors = 0.01 * rows.abs()
    value = rows @ matrix
    bound = carried_gain(errors, matrix, value)
    for seed in range(20):
        signs = torch.sign(random(5, 40, name=f"signs {seed}").double())
        moved = gain_error((rows + errors * signs) @ matrix, value)
        assert bool((moved.abs() <= bound).all())
    along = value @ matrix.T / value.square().sum(dim=-1, keepdim=True)
    straight = gain_error((rows + errors * torch.sign(along)) @ matrix, value)
    assert bool((straight > bound / 4).all()), "errors of one sign each are not independent; they reach further"
