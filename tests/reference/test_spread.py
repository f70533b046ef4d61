from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from even import evenly
from npudiff.draw.data import Stream
from npudiff.reference.bounds import unit_roundoff
from npudiff.reference.decoder_layer.turning import turned
from npudiff.reference.rms_norm import RmsNormInputs, rms_norm
from npudiff.reference.rotary import RotaryInputs, rotary
from npudiff.reference.spread import CONFIDENCE, EVEN, Spread, linear, normed, rounding_scale

BFLOAT = torch.bfloat16
ROUNDING = unit_roundoff(BFLOAT)


def numbers(*shape, name="numbers"):
    return Stream(7, name).normal(shape, torch.float32).double()


def test_the_scale_of_an_even_error_is_its_standard_deviation():
    assert float(evenly((100_000,), 1).std()) == pytest.approx(EVEN, rel=0.01)
    assert rounding_scale(BFLOAT) == 2.0**-8 / math.sqrt(3)


def test_a_rounding_has_the_scale_that_is_stated_or_less():
    value = numbers(4000).unsqueeze(0)
    errors = value.bfloat16().double() - value
    stated = Spread.exact(value).rounded(BFLOAT).independent
    typical = float((errors / stated).square().mean().sqrt())
    assert 0.6 < typical < 1.0


def test_scales_of_a_product_are_the_spread_of_many_runs():
    rows, matrix, scale = numbers(3, 64), numbers(64, 5, name="matrix"), numbers(3, 64, name="scale").abs() / 100
    result = linear(Spread.of(rows, scale), matrix, torch.float32)
    runs = torch.stack([(rows + scale / EVEN * evenly((3, 64), seed)) @ matrix for seed in range(400)])
    assert torch.allclose((runs - rows @ matrix).square().mean(dim=0).sqrt(), result.independent, rtol=0.15)


def test_what_a_row_has_in_common_goes_through_a_product_and_no_further_than_a_norm():
    rows, matrix = numbers(2, 32), numbers(32, 8, name="matrix")
    given = Spread(rows, torch.zeros_like(rows), torch.full((2, 1), 0.25).double())
    product = linear(given, matrix, torch.float32)
    assert torch.equal(product.common, given.common)
    assert float((product.independent / product.value.abs().clamp(min=0.1)).max()) < 1e-4
    norm = normed(product, torch.ones(8), "plain", 1e-6, torch.float32)
    assert float(norm.common.max()) < 1e-5
    assert float(normed(product, torch.ones(8), "plain", 1.0, torch.float32).common.min()) > 1e-3


@pytest.mark.parametrize("kind", ["plain", "gemma"])
def test_a_norm_has_the_value_of_its_component_and_errors_of_many_runs(kind):
    rows, weight = numbers(2, 64), (0.3 * numbers(64, name="weight")).bfloat16()
    exact = rms_norm(RmsNormInputs(rows.float(), None, weight.float(), 1e-5, kind))["output"].value
    scale = rows.abs() / 100
    result = normed(Spread.of(rows.float().double(), scale), weight, kind, 1e-5, BFLOAT)
    assert torch.allclose(result.value, exact, rtol=1e-12)
    wide = weight.float() + (kind == "gemma")
    ratios = []
    for seed in range(50):
        other = rows.float().double() + scale / EVEN * evenly((2, 64), seed)
        normal = (other / (other.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()).bfloat16().double()
        ratios.append(((normal * wide.bfloat16().double()).bfloat16().double() - exact).abs() / result.bounded.error)
    assert 0.3 < float(torch.stack(ratios).max()) < 1


def test_a_sum_adds_what_both_rows_have_in_common():
    one, other = numbers(2, 4), numbers(2, 4, name="other")
    common = torch.full((2, 1), 0.01).double()
    result = Spread(one, 0.03 * torch.ones(2, 4), common).plus(Spread(other, 0.04 * torch.ones(2, 4), 2 * common))
    assert torch.allclose(result.independent, 0.05 + 0.01 * one.abs() + 0.02 * other.abs())
    assert torch.equal(result.value, one + other)


def test_heads_are_rows_of_their_own_and_bounds_are_six_scales():
    rows = Spread(numbers(2, 6), torch.full((2, 6), 0.5).double(), torch.tensor([[0.25], [0.0]]).double())
    heads = rows.heads(3)
    assert heads.value.shape == (2, 3, 2)
    assert heads.common.shape == (2, 3, 1)
    assert torch.equal(heads.part(slice(1, 2)).value[..., 0], rows.value[:, 1::2])
    assert torch.equal(rows.bounded.error, CONFIDENCE * 0.5 + rows.value.abs() * rows.common)
    assert torch.equal(rows.expected(BFLOAT).bound, rows.bounded.error)
    assert torch.equal(rows.rows([1]).value, rows.value[1:])


def test_a_product_of_exact_rows_is_rounded_once():
    result = linear(Spread.exact(numbers(4, 64)), numbers(64, 50, name="matrix"), BFLOAT)
    ratio = result.independent / (result.value.abs() * rounding_scale(BFLOAT) + 1e-9)
    assert bool((ratio > 0.99).all())
    assert float(ratio.median()) < 1.01


@pytest.mark.parametrize(("kind", "roundings"), [("plain", 2), ("gemma", 3)])
def test_a_norm_of_exact_rows_is_rounded_as_often_as_a_device_may(kind, roundings):
    result = normed(Spread.exact(numbers(4, 64)), numbers(64, name="weight"), kind, 1e-5, BFLOAT)
    ratio = result.independent / (result.value.abs() * rounding_scale(BFLOAT))
    assert torch.allclose(ratio, torch.full_like(ratio, math.sqrt(roundings)), rtol=1e-6)
    assert 0 < float(result.common.max()) < 1e-5


@pytest.mark.parametrize("style", ["half", "interleaved", "interleaved_to_half"])
def test_a_rotation_rounds_two_products_and_their_sum_and_turns_errors_of_pairs(style):
    inputs = SimpleNamespace(
        cos_sin_cache=numbers(5, 4, name="table").bfloat16(),
        positions=torch.tensor([3, 1, 4]),
        hidden=torch.ones(1).bfloat16(),
    )
    states, scale = numbers(3, 2, 6), numbers(3, 2, 6, name="scale").abs()
    exact = turned(Spread.exact(states), inputs, style)
    right = rotary(RotaryInputs(states, states, inputs.positions, inputs.cos_sin_cache, style))["query"].value
    assert torch.equal(exact.value, right)
    runs = [
        turned(Spread.exact(states + scale / EVEN * evenly(states.shape, seed)), inputs, style).value - right
        for seed in range(400)
    ]
    spread = torch.stack(runs).square().mean(dim=0).sqrt()
    moved = turned(Spread.of(states, scale), inputs, style)
    assert torch.allclose(spread, moved.independent, rtol=0.15, atol=0.02)
    cosine, sine = inputs.cos_sin_cache[inputs.positions].double().unsqueeze(1).chunk(2, dim=-1)
    first, second = (states[..., :2], states[..., 2:4]) if style == "half" else (states[..., 0:4:2], states[..., 1:4:2])
    sums = (first * cosine).square() + (second * sine).square() + (first * cosine - second * sine).square()
    place = slice(0, 4, 2) if style == "interleaved" else slice(0, 2)
    assert torch.allclose(exact.independent[..., place], sums.sqrt() * rounding_scale(BFLOAT), rtol=1e-6)
    assert bool((exact.independent[..., 4:] == 0).all())
