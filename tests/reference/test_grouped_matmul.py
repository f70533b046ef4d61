from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.reference import expert_weights
from npudiff.reference.expert_weights import ExpertRows, ExpertWeights, times, whole_product
from npudiff.reference.grouped_matmul import GroupedMatmulInputs, counts_of, grouped_matmul
from npudiff.reference.inexact import Inexact

COUNTS = torch.tensor([2, 0, 3])


def numbers(*shape, name="numbers"):
    return Stream(7, name).normal(shape, torch.float32)


def integers(*shape, bits=8, name="integers"):
    half = 1 << (bits - 1)
    count = torch.Size(shape).numel()
    return torch.tensor(Stream(7, name).integers(-half, half, count), dtype=torch.int8).reshape(shape)


def inputs(states, weights, group_list=COUNTS, kind="counts", **more):
    arguments = {"token_scale": None, "output_dtype": torch.bfloat16} | more
    return GroupedMatmulInputs(states, weights, group_list, kind, **arguments)


def whole(bits, rows=5, inner=4, columns=3, groups=1, experts=3):
    weights = ExpertWeights(
        integers(experts, inner, columns, bits=bits, name="w"), bits, numbers(experts, groups, columns, name="s").abs()
    )
    return integers(rows, inner, name="x"), weights, numbers(rows, name="t").abs()


@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (4, 1), (4, 2)])
def test_whole_numbers_are_exact_arithmetic_with_fractions(bits, groups):
    states, weights, token_scale = whole(bits, groups=groups)
    result = grouped_matmul(inputs(states, weights, token_scale=token_scale))["output"]
    row = 0
    for expert, count in enumerate(COUNTS.tolist()):
        for _ in range(count):
            for column in range(3):
                terms = [
                    int(states[row, k])
                    * int(weights.values[expert, k, column])
                    * Fraction(float(weights.scale[expert, k * groups // 4, column]))
                    for k in range(4)
                ]
                exact = float(sum(terms) * Fraction(float(token_scale[row])))
                assert float(result.value[row, column]) == pytest.approx(exact, rel=1e-13, abs=1e-13)
            row += 1
    assert row == 5


def test_an_int32_bias_is_scaled_and_a_float_bias_is_not():
    states, weights, token_scale = whole(8)
    plain = grouped_matmul(inputs(states, weights, token_scale=token_scale))["output"].value
    before = replace(weights, bias=torch.full((3, 3), 10, dtype=torch.int32))
    after = replace(weights, bias=torch.full((3, 3), 10.0))
    scaled = grouped_matmul(inputs(states, before, token_scale=token_scale))["output"].value - plain
    added = grouped_matmul(inputs(states, after, token_scale=token_scale))["output"].value - plain
    expert = torch.tensor([0, 0, 2, 2, 2])
    assert torch.allclose(scaled, 10 * (weights.scale[expert, 0] * token_scale.unsqueeze(1)).double(), atol=1e-10)
    assert torch.allclose(added, torch.full((5, 3), 10.0).double(), atol=1e-10)


def test_sums_without_scales_are_exact_even_where_float32_is_not():
    states = torch.full((1, 1500), 127, dtype=torch.int8)
    weights = ExpertWeights(torch.full((1, 1500, 1), 127, dtype=torch.int8), 8)
    weights.values[0, -1, 0] = 2
    result = grouped_matmul(inputs(states, weights, torch.tensor([1]), output_dtype=torch.int32))["output"]
    assert int(result.value) == 127 * 127 * 1499 + 254
    assert int(torch.tensor(float(result.value), dtype=torch.float32)) != int(result.value)
    assert float(result.bound) == 0


def test_int4_is_multiplied_in_float32_only_while_that_is_exact():
    for inner in (2**13, 2**14 + 1):
        rows, matrix = torch.full((1, inner), -128.0).double(), torch.full((inner, 1), -8, dtype=torch.int8)
        matrix[0, 0] = -7
        assert int(whole_product(Inexact.exact(rows), matrix, 4).sums) == 128 * (8 * inner - 1)


def test_weights_alone_in_integers_are_dequantised_with_their_offset():
    weights = ExpertWeights(
        torch.tensor([[[1, -8], [7, 0]]], dtype=torch.int8),
        4,
        torch.tensor([[[0.5, 2.0]]]).bfloat16(),
        torch.tensor([[[1.0, -1.0]]]).bfloat16(),
    )
    states = torch.tensor([[2.0, 3.0]]).bfloat16()
    result = grouped_matmul(inputs(states, weights, torch.tensor([1])))["output"].value
    assert result.tolist() == [[2 * 0.5 * 2 + 3 * 0.5 * 8, 2 * 2 * -9 + 3 * 2 * -1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_floats_are_a_product_per_expert_and_rows_of_no_group_are_not_specified(dtype):
    states, weights = numbers(7, 16).to(dtype), ExpertWeights(numbers(3, 16, 8, name="w").to(dtype))
    result = grouped_matmul(inputs(states, weights, output_dtype=dtype))["output"]
    right = torch.cat(
        [states[:2].double() @ weights.values[0].double(), states[2:5].double() @ weights.values[2].double()]
    )
    assert torch.equal(result.value[:5], right)
    assert bool(torch.isfinite(result.bound[:5]).all())
    assert bool(torch.isinf(result.bound[5:]).all())


@pytest.mark.parametrize(("kind", "given"), [
    ("counts", [2, 0, 3]), ("ends", [2, 2, 5]), ("pairs", [[0, 2], [2, 3], [0, 0]])])  # fmt: skip
def test_group_lists_of_three_kinds_say_the_same(kind, given):
    assert torch.equal(counts_of(torch.tensor(given), kind, 3), COUNTS)


def test_groups_of_the_inner_axis_are_products_of_slices():
    states, weights = numbers(4, 10), ExpertWeights(numbers(1, 10, 6, name="w"))
    ends = torch.tensor([3, 3, 10])
    result = grouped_matmul(
        inputs(states, weights, ends, "ends", output_dtype=torch.float32, splits_inner=True)
    )["output"].value  # fmt: skip
    x, w = states.double(), weights.values[0].double()
    assert torch.allclose(result, torch.stack([x[:, :3] @ w[:3], torch.zeros(4, 6).double(), x[:, 3:] @ w[3:]]))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_scale_may_be_negative_and_a_bound_never_is(bits):
    states, weights, token_scale = whole(bits)
    turned = replace(weights, scale=-weights.scale)
    before, after = (grouped_matmul(inputs(states, w, token_scale=token_scale))["output"] for w in (weights, turned))
    assert torch.equal(after.value, -before.value)
    assert torch.allclose(after.bound, before.bound, rtol=1e-12)
    values = states[:1].double()
    uncertain = ExpertRows(Inexact(values, torch.full_like(values, 0.5)), Inexact.exact(torch.ones(1)), quantised=True)
    assert bool((times(uncertain, turned, 0, torch.float32).brought > 0).all())


def test_equal_weights_round_alike_and_so_do_their_errors():
    """All states and integers are positive, so that roundings of the dequantised weight add up."""
    states = torch.full((1, 1024), 1.0).bfloat16()
    scale = torch.tensor([[[0.0123, 0.0217]]]).bfloat16()
    weights = ExpertWeights(torch.full((1, 1024, 2), 87, dtype=torch.int8), 8, scale)
    result = grouped_matmul(inputs(states, weights, torch.tensor([1])))["output"]
    stored = (weights.values[0].float() * scale[0].float()).bfloat16()
    right = (states.double() @ stored.double()).to(torch.bfloat16).double()
    assert bool(((right - result.value).abs() <= result.bound).all())
    assert bool(((right - result.value).abs() > 0.3 * result.bound).any())


def test_products_of_halves_may_round_to_float16_if_one_line_says_so(monkeypatch):
    states, weights, token_scale = whole(4, inner=64, columns=8)
    given = inputs(states, weights, token_scale=token_scale, output_dtype=torch.float32)
    before = grouped_matmul(given)["output"]
    monkeypatch.setattr(expert_weights, "CHANNEL_PRODUCTS", torch.float16)
    after = grouped_matmul(given)["output"]
    x, w, scale = states[:2].double(), weights.values[0].double(), weights.scale[0].double()
    high = (x / 16).floor()
    halves = [((part @ w).float() * scale.float()).half().double() for part in (high, x - 16 * high - 8)]
    total = 16 * halves[0] + halves[1] + 8 * (w * scale).sum(dim=0)
    off = (total * token_scale[:2].double().unsqueeze(1) - after.value[:2]).abs()
    assert bool((off <= after.bound[:2]).all())
    assert bool((off > before.bound[:2]).any())
    assert float((off / after.bound[:2]).max()) > 0.7


@pytest.mark.parametrize("scaled", [True, False])
def test_an_integer_of_the_rows_that_is_not_sure_is_carried_through(scaled):
    _, weights, _ = whole(8, inner=256)
    worth = weights.scale[0].double() if scaled else torch.ones(1, 3).double()
    weights = weights if scaled else replace(weights, scale=None)
    values = integers(1, 256, name="x").double()
    error = torch.zeros_like(values)
    error[0, ::4] = 1.0
    rows = ExpertRows(Inexact(values, error), Inexact.exact(torch.ones(1)), quantised=True)
    bound = times(rows, weights, 0, torch.float32).inexact
    ratios = []
    for seed in range(50):
        signs = torch.tensor(Stream(seed, "flips").integers(-1, 2, 256)).double()
        other = ((values + error * signs) @ weights.values[0].double()) * worth
        ratios.append(float(((other - bound.value).abs() / bound.error).max()))
    assert 0.4 < max(ratios) <= 1, max(ratios)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group_list_type": "sizes"}, "group_list_type is one of counts, ends, pairs, got sizes"),
        ({"group_list": torch.tensor([1, 2])}, r"group_list must be \[3\], got \[2\]"),
        ({"group_list": torch.tensor([1, 2]), "group_list_type": "pairs"}, r"group_list must be \[3, 2\], got \[2\]"),
        ({"group_list": torch.tensor([3, 0, 3])}, "groups have 6 of 5 rows"),
        ({"group_list": torch.tensor([3, 2, 5]), "group_list_type": "ends"}, "no group has fewer than 0 rows"),
        (
            {"group_list": torch.tensor([[2, 3], [0, 2], [0, 0]]), "group_list_type": "pairs"},
            r"pairs must name experts of 0..2 in their order, got \[2, 0\]",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    given = inputs(numbers(5, 16).bfloat16(), ExpertWeights(numbers(3, 16, 8, name="w").bfloat16()))
    with pytest.raises(ValueError, match=message):
        grouped_matmul(replace(given, **changed))


FLOATS = numbers(5, 4)
WHOLE = integers(5, 4)


@pytest.mark.parametrize(
    ("states", "weights", "more", "name"),
    [
        (FLOATS, ExpertWeights(numbers(1, 4, 3), bias=torch.ones(1, 3)), {"splits_inner": True}, "split inner axis"),
        (FLOATS, ExpertWeights(numbers(3, 4, 3), bias=torch.ones(3, 3, dtype=torch.int32)), {}, "int32 bias of rows"),
        (FLOATS, ExpertWeights(numbers(3, 4, 3)), {"token_scale": torch.ones(5)}, "scale of rows that are floats"),
        (WHOLE, ExpertWeights(integers(3, 4, 3), 8, bias=torch.ones(3, 3)), {}, "float bias of sums without"),
        (WHOLE, ExpertWeights(integers(3, 4, 3), 8), {"token_scale": torch.ones(5)}, "sums without one"),
        (
            WHOLE, ExpertWeights(integers(3, 4, 3), 8, torch.ones(3, 2, 3), bias=torch.ones(3, 3, dtype=torch.int32)),
            {}, "several scales",
        ),
    ],
)  # fmt: skip
def test_what_the_product_has_no_place_for_is_refused(states, weights, more, name):
    with pytest.raises(ValueError, match=f"no place for .*{name}"):
        grouped_matmul(inputs(states, weights, **more))
