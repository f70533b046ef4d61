"""Criteria against numbers worked by hand from the published standards (CANN community, msprobe)."""

from __future__ import annotations

import math

import pytest
import torch

from npudiff.judge.compare import compare
from npudiff.judge.criteria import published_verdicts
from npudiff.reference.bounds import Expected, exactly

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SINGLE = list(zip(DTYPES, (2**-10, 2**-7, 2**-13), strict=True))


def verdicts(golden, actual, dtype=torch.float32, bound=None):
    value = torch.tensor(golden, dtype=torch.float64)
    limits = torch.ones_like(value) if bound is None else torch.tensor(bound, dtype=torch.float64)
    (output,) = compare({"y": Expected(value, limits, dtype)}, {"y": torch.tensor(actual, dtype=dtype)}).outputs
    return {verdict.criterion: verdict for verdict in published_verdicts(output)}


def test_equal_outputs_pass_everything():
    for dtype in DTYPES:
        passed = verdicts([1.0, -2.0, 0.0], [1.0, -2.0, 0.0], dtype)
        assert list(passed) == ["CANN single benchmark", "CANN mixed tolerance", "cosine"]
        assert all(verdict.passes for verdict in passed.values())


@pytest.mark.parametrize(("dtype", "limit"), SINGLE)
def test_single_benchmark_asks_for_a_mean_relative_error_below_its_threshold(dtype, limit):
    # One element of two is off by 4 limits (passes the cap of 10): the mean is 2 limits. Of five: 0.8 limits.
    off = 1 + 4 * limit
    assert not verdicts([1.0, 1.0], [off, 1.0], dtype)["CANN single benchmark"].passes
    assert verdicts([1.0] * 5, [off, 1.0, 1.0, 1.0, 1.0], dtype)["CANN single benchmark"].passes


@pytest.mark.parametrize(("dtype", "limit"), SINGLE)
def test_single_benchmark_asks_for_a_largest_relative_error_below_ten_thresholds(dtype, limit):
    count = 64
    for times, passes in ((8, True), (12, False)):
        actual = [1.0] * (count - 1) + [1 + times * limit]
        assert verdicts([1.0] * count, actual, dtype)["CANN single benchmark"].passes is passes


def test_single_benchmark_adds_a_floor_to_a_golden_of_zero():
    # |0 - 1e-12| / (0 + 1e-7) = 1e-5, below 2**-13; 1e-10 gives 1e-3, above 2**-13 and below its tenfold.
    assert verdicts([0.0], [1e-12])["CANN single benchmark"].passes
    assert not verdicts([0.0], [1e-10])["CANN single benchmark"].passes


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [(torch.float16, 2**-9, 2**-9), (torch.bfloat16, 2**-6, 2**-6), (torch.float32, 2**-10, 2**-16)],
)
def test_mixed_tolerance_adds_relative_and_absolute_parts(dtype, relative, absolute):
    # At golden 1 the tolerance is relative + absolute; one of 50 elements outside leaves 98 % matched.
    edge = relative + absolute
    for error, passes in ((edge, True), (edge * 1.5 if dtype is torch.float32 else edge * 2, False)):
        actual = [1.0] * 49 + [1 + error]
        assert verdicts([1.0] * 50, actual, dtype)["CANN mixed tolerance"].passes is passes


def test_mixed_tolerance_lets_one_element_in_a_hundred_be_off():
    def passes(count):
        return verdicts([1.0] * count, [1.005] + [1.0] * (count - 1))["CANN mixed tolerance"].passes

    assert passes(100)
    assert not passes(99)


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float16, 0.1), (torch.bfloat16, 1.0), (torch.float32, 0.01)])
def test_mixed_tolerance_caps_the_largest_error_at_its_floor_near_zero(dtype, floor):
    for error, passes in ((floor * 0.98, True), (floor * 1.02, False)):
        actual = [0.0] * 199 + [error]
        assert verdicts([0.0] * 200, actual, dtype)["CANN mixed tolerance"].passes is passes


@pytest.mark.parametrize(("error", "passes"), [(32.0, True), (36.0, False)])
def test_mixed_tolerance_caps_the_largest_error_at_32_units_of_a_large_golden(error, passes):
    # bfloat16 at 128..255 has units of 1, so the cap at golden 128 is 32.
    actual = [1.0] * 199 + [128.0 + error]
    assert verdicts([1.0] * 199 + [128.0], actual, torch.bfloat16)["CANN mixed tolerance"].passes is passes


@pytest.mark.parametrize(("turn", "passes"), [(0.13, True), (0.15, False)])
def test_cosine_asks_for_more_than_099(turn, passes):
    # cos 0.13 = 0.99156, cos 0.15 = 0.98877
    verdict = verdicts([1.0, 0.0], [math.cos(turn), math.sin(turn)])["cosine"]
    assert verdict.passes is passes
    assert verdict.detail.startswith(f"{math.cos(turn):.6f}")


def test_values_that_are_not_finite_fail_everything_unless_they_agree():
    for actual in (math.nan, -math.inf, 5.0):
        failed = verdicts([1.0, math.inf], [1.0, actual])
        assert len(failed) == 3
        assert not any(verdict.passes for verdict in failed.values())
    agreed = verdicts([1.0, math.inf], [1.0, math.inf])
    assert all(verdict.passes for verdict in agreed.values())


def test_criteria_have_the_same_names_whatever_they_say():
    assert set(verdicts([1.0], [math.nan])) == set(verdicts([1.0], [1.0]))


def test_elements_that_are_not_specified_are_left_out():
    unspecified = verdicts([1.0, 1.0], [1.0, math.nan], bound=[1.0, math.inf])
    assert all(verdict.passes for verdict in unspecified.values())
    assert verdicts([1.0], [math.nan], bound=[math.inf]) == {}


def test_masks_numbers_and_wrong_shapes_have_no_verdicts():
    for right, actual in (
        (torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)),
        (torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.int32)),
        (torch.zeros(2), torch.zeros(3)),
    ):
        (output,) = compare({"y": exactly(right)}, {"y": actual}).outputs
        assert published_verdicts(output) == ()
