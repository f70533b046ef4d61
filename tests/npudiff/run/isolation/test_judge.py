"""Faults of workers: each is told of the case whose fault it is, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re

import pytest

from npudiff.errors import DeviceLost
from npudiff.model.component import ImplementationRaised
from npudiff.model.faults import Kind
from npudiff.model.job import Budget, Outcome, Verdict
from npudiff.run.engine import run_case, run_job
from npudiff.run.isolation.journal import left_behind
from npudiff.run.isolation.judge import IsolatedJudge
from npudiff.run.isolation.worker import probe_device
from planted import inspected, places


@pytest.fixture
def inspect(toy, planted, isolation):
    """Judge numbers, of which some have faults."""

    def run(numbers, **faults):
        return inspected(toy.job(planted(**faults)), numbers, lambda number: toy.Case((number,)), isolation)

    return run


def test_right_cases_hold_in_one_process(inspect, left, isolation):
    seen = inspect(range(30))
    assert seen.held == list(range(30))
    assert not list(isolation.journal.iterdir())


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ({"segfaults": {2}}, Kind.DIED, "SIGSEGV"),
        ({"aborts": {2}}, Kind.DIED, "SIGABRT"),
        ({"exits": {2}}, Kind.DIED, "exit code 3"),
        ({"codes": {2: 507015}}, Kind.FAULT, "507015"),
        ({"codes": {2: 507899}}, Kind.FAULT, "507899"),
        ({"hangs": {2}}, Kind.TIMED_OUT, "no answer within 0.4 s"),
        ({"rejects": {2}}, Kind.REJECTED, "561002"),
    ],
)
def test_a_fault_is_told_and_the_next_case_is_judged(inspect, left, fault, kind, text):
    seen = inspect(range(5), **fault)
    assert seen.failed == {2: kind}
    assert seen.held == [0, 1, 3, 4]
    assert not seen.outcome.poisonings
    (behind,) = left_behind(seen.outcome.journal.parent)
    assert (json.loads(behind.case)["numbers"], behind.verdict) == ([2], kind.value)


def test_a_wrong_value_comes_with_its_tensors(toy, planted, isolation, left):
    judge = IsolatedJudge(toy.job(planted(wrong={7})), isolation)
    comparison = judge.check(toy.Case((7, 3)))
    (output,) = comparison.outputs
    assert (output.actual.tolist(), output.value.tolist(), output.ratio.tolist()) == ([15, 7], [14, 6], [2, 2])
    assert comparison.worst == 2
    judge.close(Outcome(toy.job()))


def test_a_case_that_poisons_is_found_among_those_before(inspect, left):
    seen = inspect(range(40), poisons={17})
    assert seen.failed == {}
    assert seen.held == list(range(40))
    (poisoning,) = seen.outcome.poisonings
    assert seen.poisoning("numbers") == [17]
    assert json.loads(poisoning.victim)["numbers"] == [18]
    assert "507035" in poisoning.error


def test_a_value_that_is_wrong_after_others_only_is_told_with_the_one_before(toy, isolation, left):
    state = []

    def function(inputs, target):
        number = int(inputs.x[0])
        spoiled = bool(state)
        state.extend([number] if number == 3 else [])
        return toy.double(inputs) + spoiled

    seen = inspected(toy.job(function), range(6), lambda number: toy.Case((number,)), isolation)
    assert seen.failed == {}
    assert seen.held == list(range(6))
    assert [json.loads(one.victim)["numbers"] for one in seen.outcome.poisonings][:1] == [[4]]
    assert {one.error for one in seen.outcome.poisonings} == {"wrong value"}


def test_a_fault_that_comes_in_one_of_its_runs_alone_is_one(toy, isolation, left, tmp_path):
    marks = tmp_path / "marks"

    def function(inputs, target):
        with marks.open("a") as file:
            file.write("x")
        if len(marks.read_text()) <= 2:  # once among the cases, and in the first of three runs alone
            raise RuntimeError("error code is 507015")
        return toy.double(inputs)

    judge, outcome = IsolatedJudge(toy.job(function), isolation), Outcome(toy.job())
    with pytest.raises(ImplementationRaised, match="507015"):
        judge.check(toy.Case((1,)))
    judge.close(outcome)
    assert outcome.alone[0] == 2


def test_a_refusal_after_which_the_device_is_not_good_is_a_fault(toy, isolation, left, monkeypatch):
    spoiled = []
    monkeypatch.setattr("npudiff.run.isolation.worker.probe_device", lambda target: not spoiled)

    def function(inputs, target):
        if int(inputs.x[0]) == 2:
            spoiled.append(1)
            raise RuntimeError("call aclnnFoo failed, error code is 561002: tiling failed")
        return toy.double(inputs) + len(spoiled)

    judge, outcome = IsolatedJudge(toy.job(function), isolation), Outcome(toy.job())
    judge.check(toy.Case((1,)))
    with pytest.raises(ImplementationRaised, match="then no known answer") as raised:
        judge.check(toy.Case((2,)))
    assert raised.value.__cause__.kind is Kind.FAULT
    assert judge.check(toy.Case((1,))).holds
    judge.close(outcome)
    assert (outcome.alone, outcome.poisonings) == ((0, 0), [])


@pytest.mark.parametrize("fault", ["exits", "codes"])
def test_one_that_faults_by_itself_among_those_before_is_not_taken_for_the_poisoner(toy, isolation, left, fault):
    """2 faults where 1 was not before it: of the cases before the victim, the one that poisons is 1."""
    seen_before = []

    def function(inputs, target):
        number = int(inputs.x[0])
        if number == 2 and 1 not in seen_before:
            if fault == "exits":
                os._exit(3)
            seen_before.append(1)  # the device is lost, and its process poisons whatever follows
            raise RuntimeError("error code is 507015")
        seen_before.append(number)
        if number == 4 and 1 in seen_before:
            raise RuntimeError("error code is 507015")
        return toy.double(inputs)

    seen = inspected(toy.job(function), [0, 1, 2, 3, 4], lambda number: toy.Case((number,)), isolation)
    assert seen.poisoning("numbers") == [1]


def test_a_device_that_gives_another_answer_is_not_good(toy, monkeypatch):
    here = toy.job().subject.target
    assert probe_device(here)
    monkeypatch.setattr("npudiff.run.isolation.worker.PROBE", 7)
    assert not probe_device(here)


def test_a_device_that_stays_lost_ends_the_run(toy, isolation, left, monkeypatch):
    monkeypatch.setattr("npudiff.run.isolation.worker.probe_device", lambda target: False)

    def function(inputs, target):
        raise RuntimeError("error code is 507015")

    judge = IsolatedJudge(toy.job(function), isolation)
    with pytest.raises(DeviceLost, match="two fresh processes got no known answer"):
        judge.check(toy.Case((1,)))
    judge.close(Outcome(toy.job()))


def test_a_fault_that_comes_and_goes_is_counted(toy, isolation, left, tmp_path):
    marks = tmp_path / "marks"

    def function(inputs, target):
        with marks.open("a") as file:
            file.write("x")
        if len(marks.read_text()) % 2:
            raise RuntimeError("error code is 507015")
        return toy.double(inputs)

    judge, outcome = IsolatedJudge(toy.job(function), isolation), Outcome(toy.job())
    with pytest.raises(ImplementationRaised, match="507015"):
        judge.check(toy.Case((1,)))
    judge.close(outcome)
    assert outcome.alone == (2, 3)


def test_what_was_counted_of_one_case_is_not_told_of_the_next(toy, planted, isolation, left):
    judge, outcome = IsolatedJudge(toy.job(planted(segfaults={1}, rejects={2})), isolation), Outcome(toy.job())
    with pytest.raises(ImplementationRaised, match="SIGSEGV"):
        judge.check(toy.Case((1,)))
    assert judge.alone == (3, 3)
    with pytest.raises(ImplementationRaised, match="561002"):
        judge.check(toy.Case((2,)))
    judge.close(outcome)
    assert outcome.alone == (0, 0)


@pytest.mark.slow
def test_the_engine_shrinks_a_crash(toy, planted, isolation, left):
    faults = {"segfaults": range(600, 1001)}
    outcome = run_job(toy.job(planted(**faults)), Budget(examples=100, seed=1, isolation=isolation))
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case == toy.Case((600,))
    assert re.search(r"died: SIGSEGV, in function \(conftest.py:\d+\)", str(outcome.failure.error))
    assert not outcome.flaky
    again = run_case(toy.job(planted(**faults)), toy.Case((600,)), isolation)
    assert again.alone == (3, 3)


def with_planted_faults(inspect, count, **faults):
    """Judge so many cases in any order, with faults planted in some; all that is said has to be right."""
    order, at = places(count, faults)
    dead = at["crashes"]
    kinds = {"segfaults": dead[::4], "aborts": dead[1::4], "exits": dead[2::4]}
    codes = dict.fromkeys(dead[3::4], 507015)
    seen = inspect(order, **kinds, codes=codes, hangs=at["hangs"], poisons=at["poisons"])
    assert sorted(seen.failed) == sorted([*dead, *at["hangs"]])
    assert {number for number, kind in seen.failed.items() if kind is Kind.TIMED_OUT} == set(at["hangs"])
    assert sorted(seen.poisoning("numbers")) == sorted(at["poisons"])
    assert sorted(seen.held) == sorted({*order} - {*dead, *at["hangs"]})


@pytest.mark.slow
def test_a_hundred_cases_with_planted_faults(inspect, left):
    with_planted_faults(inspect, 100, crashes=6, hangs=2, poisons=2)


@pytest.mark.slow
def test_a_thousand_cases_with_eighty_planted_faults(inspect, left):
    with_planted_faults(inspect, 1000, crashes=50, hangs=20, poisons=10)
