from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from by_night import by_night
from npudiff.judge.compare import (
    SAMPLED,
    _is_mostly_moved,
    bounds_of,
    compare,
    compare_runs,
    error_ratio,
    gain_error,
    same_bits,
)
from npudiff.reference.bounds import Expected, exactly

INF, NAN = math.inf, math.nan


def tensor(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def compared(value, bound, actual, dtype=torch.float32):
    expected = Expected(tensor(value, torch.float64), tensor(bound, torch.float64), dtype)
    return compare({"y": expected}, {"y": tensor(actual, dtype)})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (tensor([True, False], torch.bool), tensor([True, True], torch.bool)),
        (tensor([3, -4], torch.int32), tensor([3, -5], torch.int32)),
        (tensor([255], torch.uint8), tensor([254], torch.uint8)),
        (tensor([1.5, -0.0, INF, -INF]), tensor([1.5, -0.0, INF, INF])),
        (tensor([1.5, -0.0]), tensor([1.5, 0.0])),  # other bits
        (tensor([1.5, NAN]), tensor([1.5, 2.5])),
        (tensor([1.5], torch.bfloat16), tensor([1.5078125], torch.bfloat16)),
        (tensor([2**53 + 1], torch.int64), tensor([2**53], torch.int64)),
    ],
)
def test_bound_0_means_equality(right, wrong):
    same = compare({"y": exactly(right)}, {"y": right.clone()})
    assert same.holds
    assert same.exact
    assert same.worst == 0
    different = compare({"y": exactly(right)}, {"y": wrong})
    assert not different.holds
    assert different.worst == INF
    assert int(different.worst_output.wrong.sum()) == 1


def test_the_two_zeros_are_equal():
    assert compared([0.0, -0.0], [0.0, 0.0], [-0.0, 0.0]).worst == 0


@pytest.mark.parametrize("actual", [0.0, 1e30, NAN, INF, -INF])
def test_an_infinite_bound_allows_anything(actual):
    assert compared([1.0], [INF], [actual]).worst == 0


@pytest.mark.parametrize(
    ("value", "right", "wrong"),
    [
        # Exactly 70,000, give or take 40: float16 ends at 65,504.
        (70_000.0, [INF, 65_504.0], [NAN, -INF, -65_504.0, 65_472.0, 0.0]),
        (-70_000.0, [-INF, -65_504.0], [NAN, INF, 65_504.0, -65_472.0]),
        # Just inside, but a correct device may come out beyond.
        (65_500.0, [INF, 65_504.0, 65_472.0], [NAN, -INF, 65_440.0]),
        # Inside whatever a device does.
        (65_440.0, [65_440.0, 65_472.0], [INF, 65_504.0, NAN]),
    ],
)
def test_what_float16_does_not_hold_is_infinite_or_the_largest_number(value, right, wrong):
    for actual in right:
        assert compared([value], [40.0], [actual], torch.float16).holds
    for actual in wrong:
        assert not compared([value], [40.0], [actual], torch.float16).holds, actual


def test_a_row_that_overflows_has_no_gain():
    expected = Expected(
        tensor([[70_000.0, 1.0]], torch.float64), tensor([[40.0, 0.01]], torch.float64), torch.float16,
        tensor([1e-3], torch.float64),
    )  # fmt: skip
    assert compare({"y": expected}, {"y": tensor([[INF, 1.0]], torch.float16)}).holds
    assert compare({"y": expected}, {"y": tensor([[65_504.0, 1.0]], torch.float16)}).holds
    assert not compare({"y": expected}, {"y": tensor([[INF, 1.1]], torch.float16)}).holds


def test_beside_a_number_that_overflows_infinity_is_infinity_and_what_may_be_anything_is_anything():
    expected = Expected(
        tensor([70_000.0, INF, -70_000.0], torch.float64), tensor([40.0, 1.0, INF], torch.float64), torch.float16
    )
    assert compare({"y": expected}, {"y": tensor([INF, INF, NAN], torch.float16)}).holds
    assert compare({"y": expected}, {"y": tensor([INF, INF, 1.0], torch.float16)}).holds
    assert not compare({"y": expected}, {"y": tensor([INF, 65_504.0, 1.0], torch.float16)}).holds


def test_of_two_runs_one_may_saturate_only_where_both_may():
    expected = {
        "y": Expected(tensor([70_000.0, 3.0], torch.float64), tensor([40.0, 0.1], torch.float64), torch.float16)
    }
    one, other = (
        {"y": tensor([INF, 3.0], torch.float16)}, {"y": tensor([65_504.0, 3.0], torch.float16)}
    )  # fmt: skip
    assert compare_runs(bounds_of(expected), one, other, "").holds
    assert not compare_runs(bounds_of(expected), one, {"y": tensor([INF, INF], torch.float16)}, "").holds


@pytest.mark.parametrize("actual", [NAN, INF, -INF])
@pytest.mark.parametrize("bound", [0.0, 1.0, 1e300])
def test_a_value_that_is_not_finite_is_wrong_whatever_the_bound_is(actual, bound):
    comparison = compared([1.0, 2.0], [1.0, bound], [1.0, actual])
    assert comparison.worst == INF
    assert comparison.worst_output.wrong.tolist() == [False, True]


def test_a_finite_value_where_an_infinite_one_is_right_is_wrong():
    assert compared([-INF, -INF], [1.0, 1.0], [-INF, -3e38]).worst_output.ratio.tolist() == [0.0, INF]


def test_the_worst_ratio_is_reported_when_all_is_well():
    comparison = compared([1.0, 1.0, 1.0], [0.5, 0.25, INF], [1.25, 1.1875, 9.0])
    assert comparison.holds
    assert not comparison.exact
    assert comparison.worst == 0.75
    assert comparison.worst_output.ratio.tolist() == [0.5, 0.75, 0.0]


@pytest.mark.parametrize(("actual", "holds"), [(1.5, True), (1.5000001192092896, False), (0.5, True)])
def test_an_error_of_exactly_the_bound_is_within_it(actual, holds):
    comparison = compared([1.0], [0.5], [actual])
    assert comparison.holds is holds
    assert comparison.worst_output.wrong.tolist() == [not holds]


def test_shapes_that_differ_are_named_and_nothing_else_is_compared():
    comparison = compare({"y": exactly(torch.zeros(2, 3))}, {"y": torch.zeros(2, 3, 1)})
    assert comparison.worst_output.problem == "shape [2, 3, 1], expected [2, 3]"
    assert comparison.worst == INF
    assert not comparison.holds
    assert comparison.worst_output.wrong is None


def test_dtypes_that_differ_are_named():
    expected = Expected(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), torch.bfloat16)
    comparison = compare({"y": expected}, {"y": torch.zeros(2)})
    assert comparison.worst_output.problem == "dtype torch.float32, expected torch.bfloat16"
    assert not comparison.holds


def test_empty_tensors_compare_equal_and_their_shapes_still_count():
    assert compare({"y": exactly(torch.zeros(0, 4))}, {"y": torch.zeros(0, 4)}).worst == 0
    assert not compare({"y": exactly(torch.zeros(0, 4))}, {"y": torch.zeros(0, 5)}).holds


def test_the_worst_of_several_outputs_decides_and_missing_ones_are_left_out():
    expected = {name: exactly(torch.zeros(2)) for name in ("a", "b", "c")}
    comparison = compare(expected, {"a": torch.zeros(2), "b": torch.ones(2)}, "why")
    assert [output.name for output in comparison.outputs] == ["a", "b"]
    assert comparison.worst_output.name == "b"
    assert comparison.context == "why"
    assert compare(expected, {"a": torch.zeros(2)}).holds


def test_outputs_that_require_gradients_are_compared_as_numbers():
    y = torch.tensor([2.0], requires_grad=True) * 1
    expected = Expected(tensor([2.25], torch.float64), tensor([0.5], torch.float64), torch.float32)
    assert compare({"y": expected}, {"y": y}).worst == 0.5


_FLOATS = st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, -0.0, INF, -INF, NAN]))
_BOUNDS = st.one_of(st.floats(0, 1e3, allow_subnormal=False), st.sampled_from([0.0, INF]))


@pytest.mark.parametrize("moved", [0, 2 * SAMPLED**2])  # elements that are only moved, as in a cache
@settings(max_examples=by_night(300), deadline=None, derandomize=True, database=None)
@given(elements=st.lists(st.tuples(_FLOATS, _FLOATS, _BOUNDS), max_size=8))
def test_the_ratio_is_that_of_a_plain_loop(moved, elements):
    def ratio(actual, value, bound):
        if actual == value or bound == INF:
            return 0.0
        if not math.isfinite(actual) or not math.isfinite(value) or bound == 0:
            return INF
        return abs(actual - value) / bound

    columns = list(zip(*elements, strict=True)) or [(), (), ()]
    actual, value, bound = (torch.cat([torch.zeros(moved), tensor(column, torch.float64)]) for column in columns)
    assert _is_mostly_moved(bound) == bool(moved)
    ratios = error_ratio(actual.float(), value, bound)
    assert not ratios[:moved].any()
    assert ratios[moved:].tolist() == [ratio(*element) for element in elements]


def test_the_same_bits_hold_and_nan_equals_nan():
    one = {"y": tensor([1.0, NAN, INF]), "m": tensor([True, False], torch.bool), "i": tensor([2**53 + 1], torch.int64)}
    comparison = same_bits(one, {name: value.clone() for name, value in one.items()}, "twice")
    assert comparison.holds
    assert comparison.exact
    assert comparison.context == "twice"


@pytest.mark.parametrize("other", [[1.0, 2.0], [1.0, INF], [1.0000001192092896, NAN], [NAN, NAN]])
def test_one_other_bit_is_seen(other):
    comparison = same_bits({"y": tensor([1.0, NAN])}, {"y": tensor(other)}, "")
    assert comparison.worst == INF
    assert int(comparison.worst_output.wrong.sum()) == 1


def test_the_sign_of_a_zero_is_not_a_difference():
    # A hidden key of weight 0 adds 0 times what lies there: its sign may change that of a sum that is zero.
    assert same_bits({"y": tensor([0.0])}, {"y": tensor([-0.0])}, "").holds


@pytest.mark.parametrize("other", [{}, {"y": torch.zeros(3)}, {"y": torch.zeros(2, dtype=torch.float64)}])
def test_same_bits_names_other_shapes_dtypes_and_missing_outputs(other):
    comparison = same_bits({"y": torch.zeros(2)}, other, "")
    assert not comparison.holds
    assert re.search("different shapes or dtypes|only one of the two", comparison.worst_output.problem)


def test_same_bits_sees_an_output_that_only_the_second_run_returns():
    assert not same_bits({"y": torch.zeros(2)}, {"y": torch.zeros(2), "z": torch.zeros(2)}, "").holds


def gained(actual, most, value=((3.0, 4.0), (0.0, 0.0), (1.0, 0.0))):
    value = tensor(value, torch.float64)
    expected = Expected(value, torch.full_like(value, 0.5), torch.float32, tensor(most, torch.float64))
    return compare({"y": expected}, {"y": tensor(actual)}).outputs[0]


def test_a_row_that_is_too_long_is_wrong_though_its_elements_are_not():
    output = gained([[3.3, 4.4], [0.0, 0.0], [1.0, 0.25]], [0.05, 0.05, 0.05])
    assert output.gain.tolist() == pytest.approx([0.1, 0.0, 0.0], abs=1e-6)
    assert output.worst == pytest.approx(2.0, rel=1e-5)
    assert output.only_gain


def test_a_row_within_its_gain_is_right_and_counts_for_the_worst_ratio():
    output = gained([[2.7, 3.6], [0.0, 0.0], [1.0, 0.0]], [0.2, INF, 0.05])
    assert output.gain_ratio.tolist() == pytest.approx([0.5, 0.0, 0.0], abs=1e-6)
    assert output.worst == pytest.approx(0.8, rel=1e-5)
    assert not output.only_gain


def test_wrong_elements_come_before_gain():
    output = gained([[9.0, 4.0], [0.0, 0.0], [NAN, 0.0]], [0.05, 0.05, 0.05])
    assert output.worst == INF
    assert not output.only_gain
    assert output.gain.isfinite().all()


def test_without_a_word_of_the_reference_nothing_is_said_of_gain():
    (output,) = compared([[1.0]], [[0.5]], [[1.25]]).outputs
    assert (output.gain, output.gain_ratio, output.only_gain) == (None, None, False)


@pytest.mark.parametrize("strange", [INF, -INF, NAN, 3e38])
@pytest.mark.parametrize("right", [4.0, INF, NAN])
def test_an_element_that_is_not_specified_says_nothing_of_the_gain_of_its_row(strange, right):
    value = tensor([[3.0, right], [1.0, 2.0]], torch.float64)
    bound = tensor([[0.5, INF], [0.5, 0.5]], torch.float64)
    expected = Expected(value, bound, torch.float32, tensor([0.05, 0.05], torch.float64))
    output = compare({"y": expected}, {"y": tensor([[3.0, strange], [1.0, 2.0]])}).outputs[0]
    assert output.gain.tolist() == [0.0, 0.0]
    assert output.worst == 0


@pytest.mark.parametrize("strange", [INF, -INF, NAN])
def test_the_gain_of_what_is_not_finite_is_zero(strange):
    value = tensor([[3.0, 4.0], [strange, 4.0]], torch.float64)
    assert gain_error(tensor([[3.0, strange], [3.0, 4.0]]), value).tolist() == [0.0, 0.0]


def test_errors_of_a_row_that_cancel_are_no_gain():
    output = gained([[3.4, 3.7], [0.0, 0.0], [1.0, 0.0]], [0.05, 0.05, 0.05])
    assert output.gain.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_a_comparison_is_exact_if_every_output_is():
    expected = {"a": exactly(torch.zeros(2)), "b": Expected(torch.zeros(2), torch.ones(2), torch.float32)}
    assert not compare(expected, {"a": torch.zeros(2), "b": torch.zeros(2)}).exact
    assert compare(expected, {"a": torch.zeros(2)}).exact


@pytest.mark.parametrize(("apart", "holds"), [(1.0, True), (1.0625, False), (-1.0, True), (-1.0625, False)])
def test_two_runs_may_each_be_off_by_the_bound(apart, holds):
    bounds = {"y": tensor([0.5], torch.float64)}
    comparison = compare_runs(bounds, {"y": tensor([2.0])}, {"y": tensor([2.0 + apart])}, "why")
    assert comparison.holds is holds
    assert comparison.context == "why"


@pytest.mark.parametrize(("one", "other"), [(("y", "z"), ("y",)), (("y",), ("y", "z"))])
def test_an_output_that_only_one_of_two_runs_returns_is_wrong(one, other):
    bounds = dict.fromkeys("yz", torch.ones(2, dtype=torch.float64))
    comparison = compare_runs(bounds, dict.fromkeys(one, torch.zeros(2)), dict.fromkeys(other, torch.zeros(2)), "")
    assert comparison.worst == INF
    assert comparison.worst_output.name == "z"
    assert comparison.worst_output.problem == "only one of the two runs returns it"


def test_an_output_that_there_is_not_is_wrong():
    there_is_not = "returned, and of these inputs there is no such output"
    comparison = compare({"y": exactly(torch.zeros(2))}, {"y": torch.zeros(2), "z": torch.zeros(2)})
    assert [(output.name, output.problem) for output in comparison.outputs] == [("y", None), ("z", there_is_not)]
    assert comparison.worst == INF
    both = {"y": torch.zeros(2), "z": torch.zeros(2)}
    comparison = compare_runs({"y": torch.ones(2, dtype=torch.float64)}, both, both, "")
    assert [(output.name, output.problem) for output in comparison.outputs] == [("y", None), ("z", there_is_not)]
