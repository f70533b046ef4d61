from __future__ import annotations

import math

import pytest
import torch

from npudiff.reference import inexact
from npudiff.reference.inexact import Inexact


def number(value, error=0.0):
    return Inexact(torch.tensor([float(value)], dtype=torch.float64), torch.tensor([float(error)], dtype=torch.float64))


def ends(one):
    return [one.value.item() - one.error.item(), one.value.item() + one.error.item()]


@pytest.mark.parametrize("operation", ["times", "plus"])
def test_the_result_holds_every_pair_of_correct_operands(operation):
    one, other = number(-3.0, 0.5), number(2.0, 0.25)
    result = getattr(one, operation)(other)
    corners = [a * b if operation == "times" else a + b for a in ends(one) for b in ends(other)]
    low, high = ends(result)
    assert low <= min(corners)
    assert high >= max(corners)
    assert max(high - max(corners), min(corners) - low) <= 0.25, "and is not much wider"


def test_a_quotient_is_specified_as_far_as_the_divisor_is_not_0():
    result = number(3.0, 0.1).over(number(2.0, 0.75))
    assert result.error.item() == pytest.approx((0.1 + 1.5 * 0.75) / 1.25)
    assert number(3.0, 0.1).over(number(2.0, 2.0)).error.item() == math.inf


def test_what_a_dtype_may_just_hold_is_specified():
    assert number(65_404.0, 90.0).representable(torch.float16).error.item() == 90.0
    assert number(65_404.0, 101.0).representable(torch.float16).error.item() == math.inf


def test_plain_numbers_are_exact():
    assert ends(number(3.0, 0.5).times(-2.0)) == [-7.0, -5.0]
    assert ends(number(3.0, 0.5).plus(-2.0)) == [0.5, 1.5]
    assert ends(number(3.0, 0.5).negated()) == [-3.5, -2.5]
    assert Inexact.exact(torch.tensor([1, 2])).error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("value", "error", "limited", "left"),
    [(3.0, 0.5, 3.0, 0.5), (3.9, 0.5, 3.9, 0.5), (4.2, 0.5, 4.0, 0.3), (9.0, 0.5, 4.0, 0.0), (-9.0, 1.0, -9.0, 1.0)],
)
def test_a_limit_takes_away_what_lies_beyond_it(value, error, limited, left):
    result = number(value, error).at_most(4.0, torch.bfloat16)
    assert result.value.item() == limited
    assert result.error.item() == pytest.approx(left)


def test_a_limit_on_both_sides():
    assert [number(x, 0.5).within(4.0, torch.bfloat16).value.item() for x in (-9.0, 1.0, 9.0)] == [-4.0, 1.0, 4.0]
    assert number(-9.0, 0.5).within(4.0, torch.bfloat16).error.item() == 0


def test_a_limit_that_a_dtype_does_not_hold_may_be_either():
    stored = float(torch.tensor(7.1).bfloat16())
    result = number(100.0).at_most(7.1, torch.bfloat16)
    assert result.value.item() == 7.1
    assert result.error.item() == pytest.approx(abs(7.1 - stored))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_rounding_is_covered(dtype):
    values = torch.linspace(-3, 3, 1001, dtype=torch.float64) ** 3 / 7
    result = Inexact.exact(values).rounded(dtype)
    distance = (values.to(dtype).double() - values).abs()
    assert bool((distance <= result.error).all())
    assert float((distance / result.error).max()) > 0.85
    assert bool((result.error <= values.abs() * torch.finfo(dtype).eps * 0.51 + 1e-7).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_zero_is_zero_in_every_dtype_and_what_may_underflow_is_not(dtype):
    assert number(0.0).rounded(dtype).error.item() == 0
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert number(smallest / 4).rounded(dtype).error.item() >= smallest / 2
    assert number(0.0, smallest / 4).rounded(dtype).error.item() >= smallest * 3 / 4


def test_roundings_to_float32_add_up():
    once, thrice = number(1.0).in_float32().error.item(), number(1.0).in_float32(3).error.item()
    assert once == 2.0**-24
    assert thrice == 3 * once


def test_overflow_is_not_specified_and_stays_so():
    far = number(70_000.0).rounded(torch.float16)
    assert far.error.item() == math.inf
    assert far.times(number(0.0)).error.item() == math.inf
    assert far.plus(1.0).error.item() == math.inf
    assert far.at_most(7.0, torch.float16).error.item() == math.inf
    assert number(65_504.0).rounded(torch.float16).error.item() < math.inf


def test_an_exponential_by_powers_of_two_is_covered_where_its_argument_is_large():
    from npudiff.reference.inexact import sigmoid

    gate = torch.linspace(-80, 20, 4001)
    device = 1 / (1 + torch.exp2((-gate * torch.tensor(1.4426950408889634)).float()))
    right = sigmoid(Inexact.exact(gate))
    assert bool(((device.double() - right.value).abs() <= right.error).all())
    relative = (device.double() - right.value).abs() / right.value
    assert float(relative.max()) > 8 * 2.0**-24  # the rounding of the argument is seen


def numbers(seed=0, scale=1.0, positive=False):
    """float64 numbers with an error each, and several neighbours that lie within it, the ends included."""
    stream = torch.Generator().manual_seed(seed)
    value = torch.randn(64, 33, generator=stream, dtype=torch.float64) * scale
    value = value.abs() + 1e-3 if positive else value
    error = torch.rand(64, 33, generator=stream, dtype=torch.float64) * 0.02 * scale * (torch.arange(64)[:, None] % 3)
    error = torch.minimum(error, value.abs() / 2) if positive else error
    inside = [value + error * share for share in (-1.0, -0.5, 0.3, 1.0)]
    return Inexact(value, error), [value, *inside]


FUNCTIONS = {
    "exp": (inexact.exp, torch.exp, 3.0, False),
    "log": (inexact.log, torch.log, 5.0, True),
    "sqrt": (inexact.sqrt, torch.sqrt, 5.0, True),
    "rsqrt": (inexact.rsqrt, torch.rsqrt, 5.0, True),
    "tanh": (inexact.tanh, torch.tanh, 2.0, False),
    "erf": (inexact.erf, torch.erf, 2.0, False),
    "softplus": (inexact.softplus, torch.nn.functional.softplus, 5.0, False),
    "softmax": (inexact.softmax, lambda x: torch.softmax(x, -1), 20.0, False),
    "square": (Inexact.square, torch.square, 3.0, False),
    "abs": (Inexact.abs, torch.abs, 3.0, False),
    "sum": (Inexact.sum, lambda x: x.sum(-1), 3.0, False),
    "mean": (Inexact.mean, lambda x: x.mean(-1), 3.0, False),
    "largest": (Inexact.largest, lambda x: x.amax(-1), 3.0, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_functions_hold_what_any_neighbour_gives_in_float64_and_in_float32(name, scale):
    ours, theirs, size, positive = FUNCTIONS[name]
    given, inside = numbers(scale=size * scale, positive=positive)
    bounded = ours(given)
    assert torch.equal(bounded.value, theirs(given.value)) or torch.allclose(bounded.value, theirs(given.value), 1e-12)
    for neighbour in inside:
        off = (theirs(neighbour) - bounded.value).abs()
        assert bool((off <= bounded.error * (1 + 1e-9)).all())
    exact = given.value.float()
    rounded = ours(Inexact.exact(exact))
    rounded = rounded.in_float32() if name == "square" else rounded  # which has no rounding of its own
    assert bool(((theirs(exact).double() - rounded.value).abs() <= rounded.error).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_allow_is_no_more_than_a_few_times_what_happens(name):
    ours, theirs, size, positive = FUNCTIONS[name]
    given, inside = numbers(scale=size, positive=positive)
    bounded = ours(given)
    moved = torch.stack([(theirs(one) - bounded.value).abs() for one in inside]).amax(0)
    wide = given.error > 0 if moved.shape == given.error.shape else given.error.sum(-1) > 0
    share = (moved / bounded.error)[wide]
    assert float(share.max()) > (0.2 if name in ("softmax", "sum", "mean") else 0.9)


def test_differences_products_and_what_is_expected():
    given, inside = numbers()
    other, beside = numbers(seed=1)
    less, product = (
        given.minus(other),
        Inexact(given.value, given.error).matmul(Inexact(other.value.t(), other.error.t())),
    )
    for one, two in zip(inside, beside, strict=True):
        assert bool(((one - two - less.value).abs() <= less.error * (1 + 1e-12)).all())
        assert bool(((one @ two.t() - product.value).abs() <= product.error).all())
    assert torch.equal(given.minus(1.0).value, given.value - 1)
    stored = given.expected(torch.bfloat16)
    assert stored.dtype is torch.bfloat16
    for one in inside:
        assert bool(((one.to(torch.bfloat16).double() - stored.value).abs() <= stored.bound).all())


def test_nothing_is_said_where_a_device_may_have_zero():
    edge = Inexact(torch.tensor([0.5, 0.0], dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64))
    assert torch.isinf(inexact.log(edge).error).all() or torch.isnan(inexact.log(edge).error).any()
    assert torch.isinf(inexact.rsqrt(edge).error).all()
    root = inexact.sqrt(edge)
    assert float(root.error[1]) >= 0.1**0.5
