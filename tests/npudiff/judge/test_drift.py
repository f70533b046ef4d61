"""What all cases have in common: the sums of a case by hand, the score of many, and that chance does not reach it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch

from npudiff.judge.compare import compare
from npudiff.judge.drift import (
    GAIN,
    MOST_REMEMBERED,
    MOST_SYSTEMATIC,
    OFFSET,
    REPLAY_SCORE,
    SCORE,
    SYSTEMATIC,
    DriftMeter,
    found,
    sums_of,
)
from npudiff.model.component import Passed
from npudiff.model.drift import Sums, sums_from_plain
from npudiff.reference.bounds import Expected, exactly


@dataclass(frozen=True)
class Case:
    number: int


def compared(value, actual, bound, dtype=torch.bfloat16, **directions):
    expected = Expected(value, bound, dtype, directions=directions)
    return compare({"output": expected}, {"output": actual.to(dtype)})


def measured(comparisons):
    meter = DriftMeter()
    for number, comparison in enumerate(comparisons):
        meter.add(Case(number), comparison)
    return {(one.output, one.direction): one for one in meter.measured()}


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rounded(generator, factor=1.0, rows=8, columns=64, dtype=torch.bfloat16, most=1.0):
    """A case of normal numbers times a factor, rounded once; their bounds are those of ``most`` roundings."""
    value = normal(generator, rows, columns)
    bound = value.abs() * most * torch.finfo(dtype).eps / 2 + 1e-40
    return compared(value, value * factor, bound, dtype)


def test_the_sums_of_a_case_by_hand():
    value = torch.tensor([2.0, -4.0, 8.0], dtype=torch.float64)
    actual = torch.tensor([2.5, -4.0, 7.0], dtype=torch.float64)
    bound = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    sums = sums_of(compared(value, actual, bound, torch.float32, twice=2 * value))["output"]
    # errors over bound .5, 0, -.25; values over bound 2, -2, 2
    assert sums[GAIN] == Sums(3, 0.5, 12.0, 6.0, 12.0, 0.3125)
    assert sums[OFFSET] == Sums(3, 0.25, 3.0, 3.0, 6.0, 0.3125)
    assert sums["twice"] == Sums(3, 1.0, 48.0, 12.0, 24.0, 0.3125)


def test_what_is_not_specified_or_exact_or_not_finite_is_left_out():
    nan, inf = math.nan, math.inf
    value = torch.tensor([2.0, 1.0, nan, inf, 4.0, 5.0], dtype=torch.float64)
    actual = torch.tensor([2.5, nan, nan, inf, 4.0, 1.0], dtype=torch.float64)
    bound = torch.tensor([1.0, inf, 1.0, 1.0, 0.0, inf], dtype=torch.float64)
    sums = sums_of(compared(value, actual, bound, torch.float32))["output"]
    assert sums[GAIN] == Sums(1, 1.0, 4.0, 2.0, 4.0, 0.25)


def test_exact_outputs_and_whole_numbers_have_none():
    whole = torch.arange(4)
    assert sums_of(compare({"output": exactly(whole)}, {"output": whole})) == {}
    assert sums_of(compare({"output": exactly(whole.bfloat16())}, {"output": whole.bfloat16()})) == {}
    one_off = Expected(whole.to(torch.float64), torch.ones(4, dtype=torch.float64), torch.int8)
    assert sums_of(compare({"output": one_off}, {"output": whole.to(torch.int8)})) == {}


def test_sums_travel_as_plain_values():
    sums = sums_of(rounded(torch.Generator().manual_seed(0)))
    assert sums_from_plain(json.loads(json.dumps(sums))) == sums
    assert sums_of(Passed(0.5, exact=False, sums=sums)) == sums


def test_a_large_output_is_summed_at_distances_that_meet_every_column():
    value = torch.ones(2**14, 64, dtype=torch.float64)
    actual = value.clone()
    actual[:, 5] += 0.5
    sums = sums_of(compared(value, actual, torch.ones_like(value), torch.float32))["output"][OFFSET]
    assert sums.elements <= 2**15
    assert sums.along / sums.elements == pytest.approx(0.5 / 64, rel=0.01)


@pytest.mark.parametrize("moved", [0, 2**12], ids=["all is computed", "rows that were moved"])
def test_a_large_output_is_summed_from_its_first_row_to_its_last(moved):
    value = torch.ones(2**14, 64, dtype=torch.float64)
    actual, bound = value.clone(), torch.ones_like(value)
    actual[-(2**12) :] += 0.5
    bound[:moved] = 0.0
    sums = sums_of(compared(value, actual, bound, torch.float32))["output"][OFFSET]
    assert sums.along / sums.elements == pytest.approx(0.5 * 2**12 / (2**14 - moved), rel=0.01)


def meter_of(*means, elements=1_000, values=0.0):
    """A meter of cases with these mean errors over bound, which are offsets of an output."""
    meter = DriftMeter()
    for number, mean in enumerate(means):
        add(meter, Case(number), mean + number * 1e-9, elements, values)
    return meter


def add(meter, case, mean, elements=1_000, values=0.0, output="output"):
    sums = Sums(elements, mean * elements, elements, elements, values * elements, elements / 4)
    meter.add(case, Passed(0.5, exact=False, sums={output: {OFFSET: sums}}))


@pytest.mark.parametrize(
    ("mean", "values", "is_found"),
    [(1 / 50, 0.0, True), (1 / 70, 0.0, False), (1 / 30, 2.0**14, True), (1 / 35, 2.0**14, False)],
    ids=lambda one: f"{one:g}",
)
def test_a_sixty_fourth_of_the_bound_is_allowed_and_a_millionth_of_the_value(mean, values, is_found):
    for sign in (1, -1):
        assert found(meter_of(*[sign * mean] * 100, values=values).measured()) is is_found


@pytest.mark.parametrize("sign", [1, -1])
def test_the_cases_that_show_it_best_are_told_the_best_first(sign):
    (drift,) = meter_of(*(sign * (0.1 + 0.001 * (number * 37 % 100)) for number in range(100))).measured()
    assert [one.size for one in drift.shown] == pytest.approx([sign * 0.199, sign * 0.198, sign * 0.197], abs=1e-6)


def test_cases_of_few_elements_do_not_drown_the_others():
    meter = meter_of(*[0.05] * 100)
    for number in range(100):
        add(meter, Case(-1 - number), (-1) ** number * 0.6 + number * 1e-9, elements=2)
    assert found(meter.measured())


def test_a_case_of_many_elements_counts_as_one():
    meter = meter_of(*[0.05] * 100)
    add(meter, Case(-1), 0.0, elements=10**6)
    assert found(meter.measured())


def test_the_largest_score_comes_first_and_not_the_largest_error():
    meter = meter_of(*[0.05] * 100)
    for number in range(20):
        add(meter, Case(-1 - number), 0.5 + number * 1e-9, output="other")
    assert [drift.output for drift in meter.measured()] == ["output", "other"]


@pytest.mark.parametrize("factor", [1 + 2**-10, 1 - 2**-10])
def test_a_factor_far_below_one_rounding_is_found_with_its_size(factor):
    generator = torch.Generator().manual_seed(1)
    comparisons = [rounded(generator, factor, most=1.3) for _ in range(100)]
    assert all(comparison.holds for comparison in comparisons)
    drift = measured(comparisons)["output", GAIN]
    assert found([drift])
    assert drift.size * (2**-8 * 1.3) == pytest.approx(factor - 1, rel=0.1)
    assert drift.cases == 100
    assert drift.elements == 100 * 8 * 64
    assert math.copysign(1, drift.shown[0].step) == math.copysign(1, factor - 1)
    assert drift.shown[0].step == pytest.approx(factor - 1, rel=0.5)


def test_rounding_down_is_an_offset_and_no_gain():
    generator = torch.Generator().manual_seed(2)

    def down():
        value = normal(generator, 8, 64)
        near = value.bfloat16()
        actual = torch.where(
            near.to(torch.float64) > value, torch.nextafter(near, torch.tensor(-math.inf).bfloat16()), near
        )
        return compared(value, actual, value.abs() * 2**-7 + 1e-30)

    drifts = measured([down() for _ in range(100)])
    assert drifts["output", OFFSET].score >= SCORE
    assert drifts["output", OFFSET].size < 0
    assert drifts["output", GAIN].score < 0


def test_a_direction_of_the_reference_is_measured():
    generator = torch.Generator().manual_seed(3)

    def off():
        value, by_scale = normal(generator, 8, 64), normal(generator, 8, 64)
        return compared(value, value + 2e-3 * by_scale, value.abs() * 2**-8 + 0.05, torch.float32, scale=by_scale)

    drifts = measured([off() for _ in range(60)])
    assert drifts["output", "scale"].score >= SCORE
    assert drifts["output", GAIN].score < 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_correct_roundings_stay_below_what_is_allowed(dtype):
    """Also where a job has thousands of cases, and nothing is left to cancel but what rounding itself does."""
    generator = torch.Generator().manual_seed(4)
    drifts = measured([rounded(generator, rows=4, dtype=dtype) for _ in range(4_000)])
    assert drifts
    assert all(drift.score < -SCORE for drift in drifts.values())
    assert all(abs(drift.size) < SYSTEMATIC / 4 for drift in drifts.values())


@pytest.mark.slow
def test_what_is_allowed_is_not_found_however_long_one_looks():
    generator = torch.Generator().manual_seed(5)
    allowed = 0.9 * SYSTEMATIC * 2**-8 * 1.3
    drift = measured([rounded(generator, 1 + allowed, rows=2, most=1.3) for _ in range(3_000)])["output", GAIN]
    assert drift.size == pytest.approx(0.9 * SYSTEMATIC, rel=0.2)
    assert not found([drift])


@pytest.mark.slow
def test_rows_of_one_case_are_no_independent_witnesses():
    """Every case has an error of its own that all its rows share: thousands of rows that agree, and no drift."""
    generator = torch.Generator().manual_seed(6)
    for _ in range(20):
        shared = torch.rand(60, generator=generator, dtype=torch.float64) * 2 - 1
        comparisons = []
        for error in shared.tolist():
            value = normal(generator, 64, 64)
            comparisons.append(compared(value, value * (1 + 2**-8 * error), value.abs() * 2**-7 + 1e-30))
        assert not found(list(measured(comparisons).values()))


@pytest.mark.slow
def test_chance_does_not_reach_the_score():
    """What is allowed taken away, the score of symmetric errors is that of a sum of signs: 2,000 jobs of 50 cases."""
    generator = torch.Generator().manual_seed(7)
    largest = 0.0
    for _ in range(2_000):
        meter = DriftMeter()
        for number in range(50):
            mean = SYSTEMATIC + float(torch.randn((), generator=generator)) * 0.3
            sums = Sums(1_000, mean * 1_000 + number * 1e-9, 1_000.0, 1_000.0, 0.0, 250.0)
            meter.add(Case(number), Passed(0.5, exact=False, sums={"output": {OFFSET: sums}}))
        largest = max(largest, meter.measured()[0].score)
    assert 2.5 < largest < 4.5


def test_one_case_alone_shows_nothing_however_large_it_is():
    generator = torch.Generator().manual_seed(8)
    some = [rounded(generator, rows=1) for _ in range(99)]
    drifts = measured([*some, rounded(generator, 1 + 2**-8, rows=2_000, most=2.5)])
    assert all(drift.score < 2 for drift in drifts.values())


def test_few_cases_show_nothing():
    generator = torch.Generator().manual_seed(9)
    drift = measured([rounded(generator, 1 + 2**-8, most=2.0) for _ in range(35)])["output", GAIN]
    assert drift.score <= math.sqrt(35) < SCORE


def test_the_same_errors_in_many_cases_count_once():
    """A factor that a model's configuration gives is one number, however many cases have it."""
    value = torch.tensor([1.0033], dtype=torch.float64)
    comparison = compared(value, value, value * 2**-8)
    drift = measured([comparison] * 500)["output", GAIN]
    assert drift.cases == 1


def test_the_same_case_counts_once():
    generator = torch.Generator().manual_seed(10)
    meter = DriftMeter()
    for _ in range(100):
        meter.add(Case(0), rounded(generator, 1 + 2**-9, most=2))
    assert meter.measured()[0].cases == 1


def test_float32_may_be_off_everywhere_by_what_a_function_is():
    generator = torch.Generator().manual_seed(11)
    cases = [rounded(generator, 1 + 2**-21, dtype=torch.float32, most=64) for _ in range(200)]
    assert not measured(cases)  # a sixteenth of their bounds is less than that: they say nothing
    wide = [rounded(generator, 1 + 2**-21, dtype=torch.float32, most=1024) for _ in range(200)]
    drift = measured(wide)["output", GAIN]
    assert SYSTEMATIC < drift.most < MOST_SYSTEMATIC
    assert not found([drift])
    assert found(
        [measured([rounded(generator, 1 + 2**-17, dtype=torch.float32, most=1024) for _ in range(60)])["output", GAIN]]
    )


def test_cases_that_are_remembered_show_it_and_are_not_chosen_by_what_they_show():
    generator = torch.Generator().manual_seed(12)
    drift = measured([rounded(generator, 1 + 2**-9, rows=1, columns=4, most=1.6) for _ in range(600)])["output", GAIN]
    numbers = [json.loads(text)["number"] for text in drift.remembered]
    assert len(numbers) == MOST_REMEMBERED
    assert numbers == [place * 600 // MOST_REMEMBERED for place in range(MOST_REMEMBERED)]


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr("npudiff.judge.drift.MOST_TEXT", 200)
    (drift,) = meter_of(*[0.05] * 100).measured()
    assert 180 < sum(map(len, drift.remembered)) <= 200


def test_more_are_remembered_where_it_takes_more():
    generator = torch.Generator().manual_seed(13)
    meter = DriftMeter()
    for number in range(4_000):
        mean = SYSTEMATIC + 0.04 + float(torch.randn((), generator=generator)) * 0.3
        sums = Sums(1_000, mean * 1_000, 1_000.0, 1_000.0, 0.0, 250.0)
        meter.add(Case(number), Passed(0.5, exact=False, sums={"output": {OFFSET: sums}}))
    (drift,) = meter.measured()
    assert SCORE <= drift.score < 12
    numbers = [json.loads(text)["number"] for text in drift.remembered]
    assert MOST_REMEMBERED < len(numbers) < 4_000
    again = DriftMeter()
    for number in numbers:
        again.add(Case(number), Passed(0.5, exact=False, sums=meter._cases[Case(number)]))
    assert again.measured()[0].score > REPLAY_SCORE
