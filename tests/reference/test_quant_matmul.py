from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.quant_matmul import QuantMatmulInputs, quant_matmul

BF16, F16, INT8, INT32 = torch.bfloat16, torch.float16, torch.int8, torch.int32


def integers(name, *shape, low=-128, high=128, dtype=torch.int8):
    return torch.tensor(Stream(2, name).integers(low, high, math.prod(shape)), dtype=dtype).view(shape)


def numbers(name, count, size=1.0):
    """Positive float32 numbers that use all bits."""
    words = torch.tensor(Stream(2, name).integers(2**29, 2**30, count), dtype=torch.float64)
    return (words / 2**30 * size).float()


def inputs(output=BF16, **changes):
    given = {
        "x": integers("x", 5, 17),
        "weight": integers("weight", 17, 7),
        "scale": numbers("scale", 7, 1e-3),
        "token_scale": None,
        "offset": None,
        "bias": None,
        "output_dtype": output,
    }
    return QuantMatmulInputs(**{**given, **changes})


def expected(given):
    return quant_matmul(given)["output"]


def cut(number):
    """A float32 without the lower 13 bits of its 23 of fraction, by integer arithmetic alone."""
    exact = Fraction(float(number))
    exponent = math.frexp(float(exact))[1] - 11  # the leading bit and ten more
    return Fraction(math.trunc(exact / Fraction(2) ** exponent)) * Fraction(2) ** exponent


def by_hand(given, token, column, *, kept=False):
    """One element with fractions, before it is rounded to the output."""
    pairs = zip(given.x[token].tolist(), given.weight[:, column].tolist(), strict=True)
    total = Fraction(sum(a * b for a, b in pairs))
    bias = None if given.bias is None else Fraction(float(given.bias[column]))
    if bias is not None and given.bias.dtype == INT32:
        total += bias
    scale = given.scale[column if len(given.scale) > 1 else 0]
    total *= cut(scale) if kept else Fraction(float(scale))
    if given.token_scale is not None:
        total *= Fraction(float(given.token_scale[token]))
    if bias is not None and given.bias.dtype != INT32:
        total += bias
    if given.offset is not None:
        total += int(given.offset[column if len(given.offset) > 1 else 0])
    return total


CASES = [
    (inputs(), False),
    (inputs(scale=numbers("scale", 7, 1e-3).to(BF16)), False),
    (inputs(scale=numbers("scale", 1, 1e-3)), False),
    (inputs(token_scale=numbers("tokens", 5)), False),
    (inputs(bias=integers("bias", 7, low=-9999, high=9999, dtype=INT32)), False),
    (inputs(bias=numbers("bias", 7)), False),
    (inputs(bias=numbers("bias", 7).to(BF16), token_scale=numbers("tokens", 5)), False),
    (inputs(F16), True),
    (inputs(F16, bias=integers("bias", 7, low=-9999, high=9999, dtype=INT32)), True),
    (inputs(F16, token_scale=numbers("tokens", 5)), False),
    (inputs(F16, token_scale=numbers("tokens", 5), bias=numbers("bias", 7)), False),
    (inputs(INT8), True),
    (inputs(INT8, offset=torch.tensor([3.0]), bias=integers("bias", 7, dtype=INT32)), True),
    (inputs(INT8, offset=integers("offset", 7).float()), True),
]


@pytest.mark.parametrize(("given", "kept"), CASES, ids=range(len(CASES)))
def test_it_is_exact_arithmetic_with_fractions(given, kept):
    output = expected(given)
    assert output.dtype == given.output_dtype
    for token in range(5):
        for column in range(7):
            exact = by_hand(given, token, column, kept=kept)
            value, bound = float(output.value[token, column]), float(output.bound[token, column])
            if given.output_dtype == INT8:
                assert value == min(127, max(-128, round(exact)))
                assert bound == 0 or abs(abs(exact - math.floor(exact)) - Fraction(1, 2)) < 1e-4
            else:
                assert value == pytest.approx(float(exact), rel=1e-14)
                unit = torch.finfo(given.output_dtype).eps / 2
                assert unit * abs(value) < bound < unit * abs(value) * 1.01 + 1e-6


def test_int32_output_is_the_sums_themselves():
    given = inputs(INT32, bias=integers("bias", 7, dtype=INT32))
    output = expected(given)
    assert not bool(output.bound.any())
    assert output.value.tolist() == ((given.x.long() @ given.weight.long()) + given.bias).tolist()
    assert torch.equal(output.value, expected(replace(given, scale=torch.ones(7))).value)


def test_sums_beyond_float32_are_exact():
    x, weight = torch.full((1, 4097), 127, dtype=INT8), torch.full((4097, 1), 127, dtype=INT8)
    given = inputs(INT32, x=x, weight=weight, scale=torch.ones(1))
    assert expected(given).value.item() == 4097 * 127 * 127


def test_float32_accumulators_are_outside_where_a_bias_takes_large_sums_back():
    """Sums beyond 2**24 lose their last bits, which are all that is left after the bias."""
    count, columns = 4097, 64
    x, weight = torch.full((1, count), 127, dtype=INT8), integers("weight", count, columns, low=100, high=128)
    sums = (x.long() @ weight.long())[0]
    bias = (integers("left", columns, low=-9, high=10).long() - sums).to(INT32)
    given = inputs(BF16, x=x, weight=weight, bias=bias, scale=torch.ones(columns))
    right = (sums + bias).float()
    assert compare({"output": expected(given)}, {"output": right.to(BF16).unsqueeze(0)}).holds
    running = torch.zeros(columns)
    for row in range(count):
        running += 127.0 * weight[row].float()
    assert not compare({"output": expected(given)}, {"output": (running + bias).to(BF16).unsqueeze(0)}).holds


def test_where_scales_are_cut():
    assert inputs(F16).scale_is_cut
    assert inputs(INT8).scale_is_cut
    assert not inputs(BF16).scale_is_cut
    assert not inputs(F16, token_scale=torch.ones(5)).scale_is_cut
    whole = 1.0 + 2.0**-10 + 2.0**-11
    given = inputs(F16, x=torch.ones(1, 1, dtype=INT8), weight=torch.ones(1, 1, dtype=INT8),
                   scale=torch.tensor([whole]))  # fmt: skip
    assert expected(given).value.item() == 1.0 + 2.0**-10
    assert expected(replace(given, output_dtype=BF16)).value.item() == whole


def test_int8_saturates_on_both_sides_and_halves_may_go_either_way():
    one = torch.ones(1, 1, dtype=INT8)
    for weight, scale, value, bound in ((127, 2.0, 127, 0), (-128, 2.0, -128, 0), (-127, 1.0, -127, 0), (3, 0.5, 2, 1),
                                        (5, 0.5, 2, 1), (3, 0.25, 1, 0), (-127, 1.00390625, -127, 0)):  # fmt: skip
        given = inputs(INT8, x=one, weight=one * weight, scale=torch.tensor([scale]))
        output = expected(given)
        assert (output.value.item(), output.bound.item()) == (value, bound), (weight, scale)


def test_four_bits_are_the_same_arithmetic():
    x, weight = (integers(name, 8, 8, low=-8, high=8) for name in ("x", "weight"))
    given = inputs(F16, x=x, weight=weight, scale=torch.ones(8))
    assert torch.equal(expected(replace(given, bits=4)).value, expected(given).value)


def test_views_are_read_as_they_are_meant():
    given = inputs()
    turned = replace(given, weight=given.weight.t().contiguous().t())
    assert torch.equal(expected(turned).value, expected(given).value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output_dtype": torch.float32}, "no output torch.float32 or integers of 8 bits"),
        ({"bits": 5}, "integers of 5 bits"),
        ({"weight": integers("weight", 16, 7)}, "weight must have 17 rows, got 16"),
        ({"x": torch.ones(5, 17)}, "x must hold integers of 8 bits in int8"),
        ({"bits": 4}, "x must hold integers of 4 bits in int8"),
        ({"scale": torch.ones(5)}, r"scale must have length 1 or 7, got \[5\]"),
        ({"scale": torch.ones(1, 7)}, r"scale must have length 1 or 7, got \[1, 7\]"),
        ({"token_scale": torch.ones(7)}, r"token_scale must have length 5, got \[7\]"),
        ({"bias": torch.ones(1)}, r"bias must have length 7, got \[1\]"),
        ({"offset": torch.ones(1)}, "goes with int8 output"),
        ({"offset": torch.tensor([0.5]), "output_dtype": INT8}, "an offset is a whole number"),
        ({"bias": torch.ones(7), "output_dtype": INT8}, "a float bias goes with float output, got torch.int8"),
        ({"bias": torch.full((7,), 2**31 - 1, dtype=INT32)}, "sums must fit int32"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        quant_matmul(replace(inputs(), **changed))
