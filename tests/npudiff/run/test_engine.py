from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from draws import drawn
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import NotApplicable, Property
from npudiff.model.constraints import Constraints, Exclusion
from npudiff.model.job import Budget, Verdict
from npudiff.run.engine import run_case, run_job

SEEDED = Budget(examples=100, seed=1)


def recorded(toy, **changes):
    """Return a job that keeps the numbers of every case it runs, and the list of them."""
    seen = []

    def function(inputs, target):
        seen.append(tuple(inputs.x.tolist()))
        return toy.double(inputs)

    return toy.job(function, **changes), seen


def test_a_run_without_a_seed_draws_by_the_name_of_its_job(toy):
    """And not by the text of a function of the engine, as Hypothesis would."""
    job, seen = recorded(toy)
    outcome = run_job(job, Budget(examples=30))
    assert outcome.cases == 30
    drawn_again = drawn(job.subject.component, job.drawn_within, 30, zlib.crc32(job.name.encode()))
    assert seen == [tuple(map(float, case.numbers)) for case in drawn_again]


def test_the_seed_of_a_job_is_the_one_that_was_given_or_its_name(toy):
    job = toy.job()
    assert Budget().seed_of(job) == zlib.crc32(job.name.encode())
    assert Budget(seed=3).seed_of(job) == 3
    assert Budget(deterministic=False).seed_of(job) is None
    assert Budget(deterministic=False, fallback_seed=4).seed_of(job) == 4
    assert Budget(fallback_seed=4).seed_of(job) != 4


def test_a_right_implementation_holds(toy):
    outcome = run_job(toy.job(), SEEDED)
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.cases == 100
    assert outcome.failure is None
    assert outcome.worst_ratio == 0
    assert not outcome.exact  # the bound is 0.5
    assert not outcome.not_applicable


def test_the_worst_ratio_of_the_cases_that_hold_is_kept_with_its_case(toy):
    outcome = run_job(toy.job(lambda inputs, target: inputs.x * 2 + inputs.x / 4000), SEEDED)
    assert outcome.worst_ratio == pytest.approx(max(outcome.worst_case.numbers) / 2000, rel=1e-3)
    assert outcome.worst_ratio > 0.4


def test_cases_of_shrinking_do_not_count_towards_the_worst_ratio(toy):
    def function(inputs, target):  # shrinking meets many zeros, each of which adds to the error
        wrong = len(inputs.x) > 2 and inputs.kind == "odd"
        return inputs.x * 2 + (5 if wrong else 0.1 * (inputs.x == 0).sum())

    shrunk, drawn = (run_job(toy.job(function), replace(SEEDED, shrink=shrink)) for shrink in (True, False))
    assert shrunk.failure.case != drawn.failure.case
    assert shrunk.cases == drawn.cases > 1
    assert shrunk.worst_ratio == drawn.worst_ratio


def test_a_wrong_implementation_is_shrunk_to_the_smallest_case(toy):
    outcome = run_job(toy.job(toy.wrong_above(100)), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == toy.Case((101,), "plain")
    assert outcome.failure.comparison.worst == 202
    assert outcome.first_failure.case != outcome.failure.case
    assert not outcome.flaky


def test_how_far_off_the_worst_failing_case_is_stays_where_its_tensors_do_not(toy):
    outcome = run_job(toy.job(lambda inputs, target: inputs.x + 1), SEEDED)
    assert outcome.failed_ratio == outcome.worst_failure.comparison.worst > 1

    def raises(inputs, target):
        raise ValueError

    assert run_job(toy.job(raises), SEEDED).failed_ratio == 0
    assert run_job(toy.job(), SEEDED).failed_ratio == 0


def test_a_failure_that_needs_two_things_at_once_is_shrunk_to_both(toy):
    def function(inputs, target):
        wrong = inputs.kind == "odd" and len(inputs.x) >= 2 and bool((inputs.x > 10).any())
        return toy.double(inputs) + 1 if wrong else toy.double(inputs)

    case = run_job(toy.job(function), SEEDED).failure.case
    assert case.kind == "odd"
    assert sorted(case.numbers) == [0, 11]


def test_shrinking_can_be_left_out(toy):
    outcome = run_job(toy.job(toy.wrong_above(100)), replace(SEEDED, shrink=False))
    assert outcome.failure.case == outcome.first_failure.case


def test_cases_end_with_the_first_failure(toy):
    job, seen = recorded(toy)
    outcome = run_job(toy.job(toy.wrong_above(100)), SEEDED)
    run_job(job, SEEDED)
    first = [max(numbers) > 100 for numbers in seen].index(True)
    assert outcome.cases == first + 1
    assert sum(outcome.features[kind] for kind in ("plain", "odd")) == outcome.cases


def test_an_exception_of_the_implementation_is_a_finding(toy):
    def function(inputs, target):
        if len(inputs.x) > 2:
            raise RuntimeError("507035: vector core exception")
        return toy.double(inputs)

    outcome = run_job(toy.job(function), SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case.numbers == (0, 0, 0)
    assert type(outcome.failure.error) is RuntimeError
    assert str(outcome.failure.error) == "507035: vector core exception"


def test_a_failure_that_does_not_repeat_is_flaky_and_still_a_finding(toy):
    calls = []

    def function(inputs, target):
        calls.append(1)
        return toy.double(inputs) + (10 if len(calls) == 3 else 0)

    outcome = run_job(toy.job(function), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.flaky
    assert outcome.cases == 3


def test_a_failure_that_comes_and_goes_says_how_often(toy):
    calls = []

    def function(inputs, target):
        calls.append(1)
        return toy.double(inputs) + (10 if len(calls) >= 3 and len(calls) % 3 else 0)

    outcome = run_job(toy.job(function), replace(SEEDED, shrink=False))
    assert outcome.verdict is Verdict.WRONG
    assert outcome.repeated == (2, 3)
    assert outcome.flaky


def without(job, *excluded):
    return replace(job, subject=replace(job.subject, excluded=excluded))


def test_what_is_excluded_is_not_run_and_counted_with_its_reason(toy):
    odd = Exclusion(Constraints(({"kind": ("odd",)},)), "known: link")
    job, seen = recorded(toy)
    job = without(job, odd)
    outcome = run_job(job, SEEDED)
    assert outcome.cases == len(seen) == 100 - outcome.not_applicable["known: link"]
    assert 0 < outcome.cases < 100
    assert outcome.features == {"plain": outcome.cases, "many": outcome.features["many"]}
    assert not run_job(without(job, Exclusion(Constraints(), "all")), SEEDED).cases


def test_a_case_is_excluded_if_any_part_of_it_is(toy):
    job = without(toy.job(toy.wrong_above(100)), Exclusion(Constraints(({"number": (5,)},)), "five"))
    assert run_case(job, toy.Case((5, 101))).not_applicable == {"five": 1}
    assert run_case(job, toy.Case((6, 101))).verdict is Verdict.WRONG


def test_given_cases_come_first_and_those_that_make_no_sense_are_passed_over(toy):
    job, seen = recorded(toy)
    texts = ('{"numbers": [7], "kind": "odd"}', "junk", '{"numbers": [2000]}', '{"other": 1}', '{"numbers": [8, 9]}')
    outcome = run_job(job, replace(SEEDED, explicit_cases=texts))
    assert seen[:2] == [(7.0,), (8.0, 9.0)]
    assert outcome.cases == 102
    failing = replace(toy.job(toy.wrong_above(100)), constraints=job.constraints)
    found = run_job(failing, replace(SEEDED, explicit_cases=(*texts[:1], '{"numbers": [300, 1]}')))
    assert (found.cases, found.failure.case) == (2, toy.Case((150,)))


def test_every_case_runs_on_the_active_target_and_waits_for_it(toy):
    job, synchronized = toy.job(), []
    switch = toy.Switch()
    target = replace(job.subject.target, activate=switch.activate, synchronize=lambda: synchronized.append(switch.on))
    run_job(replace(job, subject=replace(job.subject, target=target)), Budget(examples=10, seed=0))
    assert synchronized == [True] * 10
    assert switch.times == 1
    assert not switch.on


def test_an_error_that_surfaces_on_waiting_is_a_finding_of_that_case(toy):
    def synchronize():
        raise RuntimeError("507015")

    job = toy.job()
    target = replace(job.subject.target, synchronize=synchronize)
    outcome = run_job(replace(job, subject=replace(job.subject, target=target)), SEEDED)
    assert outcome.verdict is Verdict.RAISED


def test_a_property_that_says_nothing_is_counted_with_its_reason(toy):
    outcome = run_job(toy.job(prop=toy.NEVER), Budget(examples=20, seed=0))
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert outcome.cases == 0
    assert dict(outcome.not_applicable) == {"never": 20}


def test_what_is_not_applicable_while_shrinking_is_not_counted(toy):
    said = []

    def check(subject, case):
        if case.kind == "plain":
            said.append(case)
            raise NotApplicable("plain")
        return EQUIVALENCE.check(subject, case)

    job = toy.job(toy.wrong_above(100), prop=Property("odd_only", "", check))
    outcome = run_job(job, SEEDED)
    drawn = run_job(job, replace(SEEDED, shrink=False))
    assert outcome.failure.case == toy.Case((101,), "odd")
    assert outcome.not_applicable == drawn.not_applicable
    assert outcome.not_applicable.total() < len(said)


def test_cases_outside_what_is_supported_are_counted_and_not_run(toy):
    job, seen = recorded(toy)
    item = replace(job.subject.implementation, constraints=type(job.constraints).of({"kind": ("plain",)}))
    outcome = run_job(replace(job, subject=replace(job.subject, implementation=item)), Budget(examples=40, seed=0))
    assert outcome.not_applicable["kind odd is not in {plain}"] > 5
    assert outcome.cases == len(seen)
    assert outcome.cases + outcome.not_applicable.total() == 40


def test_cases_are_drawn_within_what_is_supported(toy):
    job, seen = recorded(toy, supports={"number": range(40, 43), "count": (2,)})
    outcome = run_job(job, Budget(examples=40, seed=0))
    assert {number for numbers in seen for number in numbers} == {40, 41, 42}
    assert {len(numbers) for numbers in seen} == {2}
    assert not outcome.not_applicable


def test_cases_are_drawn_within_what_the_property_narrows(toy):
    prop = replace(toy.REPEATS, within={"number": (5,), "kind": ("odd",)})
    outcome = run_job(toy.job(prop=prop), Budget(examples=10, seed=0))
    assert set(outcome.features) <= {"odd", "many"}
    assert outcome.features["odd"] == outcome.cases > 0


@pytest.mark.parametrize("narrowed", [{"within": {"kind": ("odd",)}}, {"needs": {"kind": ("odd",)}}])
def test_a_property_that_fits_no_supported_case_is_not_applicable_at_once(toy, narrowed):
    job, seen = recorded(toy, supports={"kind": ("plain",)}, prop=replace(toy.REPEATS, **narrowed))
    outcome = run_job(job, SEEDED)
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert not seen


def test_a_region_of_which_little_or_nothing_can_be_drawn_is_no_defect(toy):
    draws = []

    @st.composite
    def after(draw, rejected):
        number = draw(st.integers(0, 9999))
        draws.append(number)
        assume(len(draws) > rejected)
        return toy.Case((number,))

    outcome = run_job(toy.job(strategy=lambda constraints: after(80)), Budget(examples=20, seed=1))
    assert (outcome.verdict, outcome.cases >= 10) == (Verdict.HOLDS, True)
    outcome = run_job(toy.job(strategy=lambda constraints: after(10**6)), Budget(examples=20, seed=1))
    assert (outcome.verdict, outcome.cases) == (Verdict.NOT_APPLICABLE, 0)
    assert outcome.not_applicable == {"no case could be drawn": 1}


def test_features_are_counted(toy):
    job, seen = recorded(toy)
    outcome = run_job(job, SEEDED)
    assert outcome.features["many"] == sum(len(numbers) > 1 for numbers in seen) > 0
    assert outcome.features["plain"] + outcome.features["odd"] == outcome.cases == len(seen)


def test_progress_hears_of_every_case(toy):
    heard = []
    run_job(toy.job(), Budget(examples=25, seed=0), lambda outcome: heard.append(outcome.cases))
    assert heard == list(range(1, 26))


def test_one_case_is_run_as_it_is(toy):
    case = toy.Case((5, 200))
    assert run_case(toy.job(), case).verdict is Verdict.HOLDS
    outcome = run_case(toy.job(toy.wrong_above(100)), case)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.cases == 1
    assert outcome.failure.case is outcome.first_failure.case is case
    assert outcome.failure.comparison.worst_output.wrong.tolist() == [False, True]


def test_one_case_outside_what_is_supported_is_not_run(toy):
    outcome = run_case(toy.job(lambda inputs, target: 1 / 0, supports={"number": range(5)}), toy.Case((7,)))
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert list(outcome.not_applicable) == ["number 7 is not in 0..4"]
