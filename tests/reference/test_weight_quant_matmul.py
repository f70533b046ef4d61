from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.weight_quant_matmul import BIAS_DTYPES, WeightQuantMatmulInputs, weight_quant_matmul

BF16, F16 = torch.bfloat16, torch.float16
DTYPES = (BF16, F16)


def integers(*shape, low=-128, high=128):
    values = Stream(6, "weight").integers(low, high, math.prod(shape))
    return torch.tensor(values, dtype=torch.int8).view(shape)


def normal(name, *shape):
    return Stream(6, name).normal(shape, torch.float32)


def inputs(dtype=BF16, inner=100, columns=7, size=0, tokens=3, offset=True, bias=True, **changes):
    shape = (-(-inner // size), columns) if size else (columns,)
    given = {
        "x": normal("x", tokens, inner).to(dtype),
        "weight": integers(inner, columns),
        "scale": (normal("scale", *shape).exp() / 32).to(dtype),
        "offset": (8 * normal("offset", *shape)).to(dtype) if offset else None,
        "bias": normal("bias", columns).to(BIAS_DTYPES[dtype]) if bias else None,
        "group_size": size,
    }
    return WeightQuantMatmulInputs(**{**given, **changes})


def expected(given):
    return weight_quant_matmul(given)["output"]


def exact(given, token, column):
    """One element with fractions; the group of a row is found by counting."""
    total, group, left = Fraction(0), 0, given.group_size
    for row in range(len(given.weight)):
        if given.group_size and left == 0:
            group, left = group + 1, given.group_size
        left -= 1
        at = (group, column) if given.group_size else (min(column, len(given.scale) - 1),)
        offset = Fraction(0) if given.offset is None else Fraction(float(given.offset[at]))
        weight = (int(given.weight[row, column]) + offset) * Fraction(float(given.scale[at]))
        total += Fraction(float(given.x[token, row])) * weight
    return total + (0 if given.bias is None else Fraction(float(given.bias[column])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "given",
    [{}, {"size": 32}, {"size": 96}, {"inner": 64, "size": 32}, {"offset": False}, {"bias": False, "size": 64},
     {"inner": 1, "columns": 1}],
    ids=str,
)  # fmt: skip
def test_it_is_exact_arithmetic_with_fractions(dtype, given):
    given = inputs(dtype, **given)
    output = expected(given)
    assert output.dtype == dtype
    for token in range(len(given.x)):
        for column in range(given.weight.shape[1]):
            right = float(exact(given, token, column))
            assert float(output.value[token, column]) == pytest.approx(right, rel=1e-11, abs=1e-12)


def test_one_scale_is_for_all_columns():
    one = inputs(scale=torch.full((1,), 0.25, dtype=BF16), offset=False)
    each = replace(one, scale=torch.full((7,), 0.25, dtype=BF16))
    assert torch.equal(expected(one).value, expected(each).value)


def composed(given, rounding):
    """The four ways a device may take, in torch: ``rounding`` says after which operations the weight is rounded."""
    dtype, size = given.x.dtype, given.group_size

    def rows(numbers):
        return numbers.repeat_interleave(size, 0)[: len(given.weight)].float() if size else numbers.float()

    weight = given.weight.float() + (0 if given.offset is None else rows(given.offset))
    weight = weight.to(dtype).float() if "sum" in rounding else weight
    weight = weight * rows(given.scale)
    weight = weight.to(dtype).float() if "product" in rounding else weight
    result = given.x.float() @ weight + (0 if given.bias is None else given.bias.float())
    return {"output": result.to(dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 32, 128])
@pytest.mark.parametrize("rounding", ["", "sum", "product", "sum and product"])
def test_every_way_to_round_the_weight_is_within_the_bound_and_comes_near_it(dtype, size, rounding):
    given = inputs(dtype, 1000, 64, size, tokens=40)
    worst = compare({"output": expected(given)}, composed(given, rounding)).worst
    assert 0.3 < worst <= 1


def test_equal_integers_round_alike_and_the_bound_knows():
    """Their errors have one sign and add up: independent ones would stay below a tenth of a unit in the last place."""
    scale = (1 + 2.0**-10) * 2.0**-9
    given = inputs(F16, 2048, 1, tokens=1, bias=False, offset=False, x=torch.ones(1, 2048, dtype=F16),
                   weight=integers(2048, 1, low=3, high=4), scale=torch.tensor([scale], dtype=F16))  # fmt: skip
    output, unit = expected(given), 2.0**-11
    stored = float(torch.tensor(3 * scale).to(F16))
    moved = abs(2048 * stored - float(exact(given, 0, 0)))
    assert moved > 0.6 * unit * float(output.value)
    assert 0.6 < float(output.bound) / float(output.value) / unit - 1 < 0.7
    assert compare({"output": output}, composed(given, "product")).worst <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_is_a_few_roundings(dtype):
    given = inputs(dtype, 1000, 64, tokens=40, bias=False)
    output = expected(given)
    unit = torch.finfo(dtype).eps / 2
    sizes = given.x.double().norm(dim=1, keepdim=True) * 64
    assert float((output.bound - unit * output.value.abs()).div(sizes).median()) < unit


def test_four_bits_are_the_same_arithmetic():
    given = inputs(columns=8, weight=integers(100, 8, low=-8, high=8))
    assert torch.equal(expected(replace(given, bits=4)).value, expected(given).value)


def test_wrong_groups_offsets_and_signs_are_outside():
    given = inputs(F16, 100, 16, 32, tokens=8)
    wrongs = {
        "groups of equal size": replace(given, group_size=0, scale=given.scale[0], offset=given.offset[0]),
        "offset subtracted": replace(given, offset=-given.offset),
        "no bias": replace(given, bias=None),
        "unsigned": replace(given, weight=(given.weight.int() & 127).to(torch.int8)),
    }
    assert all(compare({"output": expected(given)}, composed(wrong, "product")).worst > 1 for wrong in wrongs.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": normal("x", 3, 100)}, "no states of torch.float32 or integers of 8 bits"),
        ({"bits": 3}, "integers of 3 bits"),
        ({"bits": 4}, "weight must hold integers of 4 bits in int8"),
        ({"weight": integers(100, 7).int()}, "weight must hold integers of 8 bits in int8"),
        ({"weight": integers(90, 7)}, "weight must have 100 rows, got 90"),
        ({"group_size": 33}, "group_size is 0 or a multiple of 32 in 32..99, got 33"),
        ({"group_size": 128}, "in 32..99, got 128"),
        ({"scale": torch.ones(4, 7, dtype=BF16)}, r"scale must be \(1,\) or \(7,\) of torch.bfloat16, got \[4, 7\]"),
        ({"scale": torch.ones(7)}, "of torch.bfloat16"),
        ({"group_size": 32}, r"scale must be \(4, 7\) of torch.bfloat16, got \[7\]"),
        ({"offset": torch.ones(1, dtype=BF16)}, r"offset must be \[7\] of torch.bfloat16, got \[1\]"),
        ({"bias": torch.ones(7, dtype=BF16)}, r"bias must be \[7\] of torch.float32, got \[7\] of torch.bfloat16"),
        ({"bias": torch.ones(6)}, r"bias must be \[7\] of torch.float32, got \[6\]"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        weight_quant_matmul(replace(inputs(), **changed))
