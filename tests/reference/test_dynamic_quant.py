from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.dynamic_quant import LEVELS, DynamicQuantInputs, by_largest, dynamic_quant, nearest, scales
from npudiff.reference.inexact import Inexact


def states(tokens=6, width=40, dtype=torch.bfloat16):
    return Stream(5, "states").normal((tokens, width), torch.float32).to(dtype)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_exact_arithmetic_with_fractions(bits, dtype):
    given = states(dtype=dtype)
    smooth = (1 + Stream(5, "smooth").normal((1, 40), torch.float32) / 4).to(dtype)
    result = dynamic_quant(DynamicQuantInputs(given, smooth, None, bits))
    levels = LEVELS[bits]
    for row in range(6):
        exact = [Fraction(float(x)) * Fraction(float(s)) for x, s in zip(given[row], smooth[0], strict=True)]
        largest = max(map(abs, exact))
        assert float(result["scale"].value[row]) == pytest.approx(float(largest / levels), rel=1e-15)
        for column, x in enumerate(exact):
            steps = x * levels / largest
            assert int(result["quantised"].value[row, column]) == round(steps)
            near = abs(abs(steps - int(steps)) - Fraction(1, 2)) < Fraction(1, 10**5)
            assert float(result["quantised"].bound[row, column]) == near


def test_every_row_uses_its_largest_integer_and_never_the_smallest():
    result = dynamic_quant(DynamicQuantInputs(states(200, 64), None, None, 8))
    assert result["quantised"].value.abs().amax(dim=1).tolist() == [127.0] * 200


def test_experts_have_factors_of_their_own():
    given, smooth = states(5, 8), torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.bfloat16).expand(3, 8)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    scaled = dynamic_quant(DynamicQuantInputs(given, smooth, ends, 8))
    plain = dynamic_quant(DynamicQuantInputs(given, None, None, 8))
    assert torch.equal(scaled["scale"].value / plain["scale"].value, torch.tensor([1.0, 1, 4, 4, 4]).double())
    assert torch.equal(scaled["quantised"].value, plain["quantised"].value)


def test_a_row_of_zeros_has_zeros_and_a_scale_of_0_or_1():
    given = states()
    given[2] = 0
    expected = dynamic_quant(DynamicQuantInputs(given, None, None, 8))
    assert bool((expected["quantised"].value[2] == 0).all())
    assert bool((expected["quantised"].bound[2] == 0).all())
    for scale, right in ((0.0, True), (1.0, True), (-1.0, False), (float("nan"), False), (float("inf"), False)):
        actual = expected["scale"].value.float()
        actual[2] = scale
        assert (compare({"scale": expected["scale"]}, {"scale": actual}).worst <= 1) == right


def test_where_a_device_may_have_zeros_the_scale_of_zeros_is_right_too():
    scale = Inexact(torch.tensor([0.0, 1e-42, 1e-30, 3.0]).double(), torch.tensor([0.0, 1e-38, 1e-38, 5.0]).double())
    expected = scales(scale)
    for given, right in (
        ([0.0, 0.0, 1e-30, 0.0], True),
        ([1.0, 1.0, 1e-30, 8.0], True),
        ([-1e-3, 0.0, 1e-30, 0.0], False),
        ([0.0, 1.001, 1e-30, 0.0], False),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([0.0, 0.0, 1e-30, 8.1], False),
    ):
        assert (compare({"scale": expected}, {"scale": torch.tensor(given)}).worst <= 1) == right, given


def test_a_scale_that_may_not_be_0_has_its_own_error_and_one_that_may_has_what_lies_between():
    expected = scales(Inexact(torch.tensor([1.0, 0.2]).double(), torch.tensor([0.3, 0.9]).double()))
    assert expected.value.tolist() == [1.0, 0.5]
    assert expected.bound.tolist() == pytest.approx([0.3, 0.6])


def test_the_middle_between_two_integers_may_go_either_way_and_nothing_else_may():
    steps = Inexact(torch.tensor([0.5, 0.49, -1.5, 126.9999, 200.0]).double(), torch.full((5,), 0.001).double())
    result = nearest(steps, 127)
    assert result.value.tolist() == [0.0, 0.0, -2.0, 127.0, 127.0]
    assert result.bound.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_nothing_is_said_of_an_integer_of_which_nothing_is_known():
    steps = Inexact(torch.tensor([3.0, 3.0]).double(), torch.tensor([math.inf, 300.0]).double())
    result = nearest(steps, 127)
    assert result.value.tolist() == [3.0, 3.0]
    assert result.bound.tolist() == [math.inf, 130.0]


def test_the_largest_element_of_a_device_lies_between_the_largest_ends():
    """What an element may be off counts as far as it may make another one the largest."""
    values = torch.tensor([[4.0, -2.0, 1.0], [4.0, -3.9, 1.0]]).double()
    errors = torch.tensor([[0.25, 1.0, 0.0], [0.25, 1.0, 3.5]]).double()
    _, scale = by_largest(Inexact(values, errors), 8)
    assert (scale.value * 127).tolist() == pytest.approx([4.0, 4.0])
    assert (scale.error * 127).tolist() == pytest.approx([0.25, 0.9], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 5}, "bits is one of 8, 4, got 5"),
        ({"smooth": torch.ones(1, 7)}, r"smooth must be \[1, 40\], got \[1, 7\]"),
        ({"expert_ends": torch.tensor([6])}, "say nothing without factors"),
        ({"smooth": torch.ones(2, 40), "expert_ends": torch.tensor([4, 3])}, "must not fall, and end at 6"),
        ({"smooth": torch.ones(2, 40), "expert_ends": torch.tensor([4, 5])}, "must not fall, and end at 6"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    arguments = {"states": states(), "smooth": None, "expert_ends": None, "bits": 8} | changed
    with pytest.raises(ValueError, match=message):
        dynamic_quant(DynamicQuantInputs(**arguments))
