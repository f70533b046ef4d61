"""Faults of workers: each is told of the case whose fault it is, and nothing is left behind."""

from __future__ import annotations

import json

import pytest
import torch

from npudiff.component import ImplementationRaised
from npudiff.engine import run_case, run_job
from npudiff.errors import DeviceLost
from npudiff.isolation.faults import Kind, RemoteError
from npudiff.isolation.journal import left_behind
from npudiff.isolation.judge import IsolatedJudge
from npudiff.outcome import Budget, Outcome, Verdict


def number_of(text):
    return json.loads(text)["numbers"][0]


def kind_of_cause(error):
    assert isinstance(error.__cause__, RemoteError)
    return error.__cause__.kind


class Inspection:
    """Judges cases one after the other, and keeps what is said of each."""

    def __init__(self, toy, function, isolation):
        job = toy.job(function)
        self.judge = IsolatedJudge(job, isolation)
        self.outcome = Outcome(job)
        self.failed, self.held = {}, []
        self.toy = toy

    def run(self, numbers):
        for number in numbers:
            case = self.toy.Case((number,))
            try:
                verdict = self.judge.check(case)
            except ImplementationRaised as error:
                self.failed[number] = kind_of_cause(error)
            else:
                self.failed |= {} if verdict.holds else {number: "wrong value"}
                self.held += [number] if verdict.holds else []
        self.judge.close(self.outcome)
        return self


@pytest.fixture
def inspect(toy, planted, isolation):
    return lambda numbers, **faults: Inspection(toy, planted(**faults), isolation).run(numbers)


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
    assert not seen.judge.poisonings
    (behind,) = left_behind(seen.outcome.journal.parent)
    assert (number_of(behind.case), behind.verdict) == (2, kind.value)


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
    assert (number_of(poisoning.case), number_of(poisoning.victim)) == (17, 18)
    assert "507035" in poisoning.error


def test_a_device_that_stays_lost_ends_the_run(toy, isolation, left, monkeypatch):
    monkeypatch.setattr("npudiff.isolation.worker.probed", lambda target: False)

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


def test_the_engine_shrinks_a_crash(toy, planted, isolation, left):
    faults = {"segfaults": range(600, 1001)}
    outcome = run_job(toy.job(planted(**faults)), Budget(examples=100, seed=1, isolation=isolation))
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case == toy.Case((600,))
    assert "SIGSEGV" in str(outcome.failure.error)
    assert not outcome.flaky
    again = run_case(toy.job(planted(**faults)), toy.Case((600,)), isolation)
    assert again.alone == (3, 3)


def with_planted_faults(inspect, count, crashes, hangs, poisons):
    """Judge so many cases in any order, with faults planted in some; all that is said has to be right."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()
    places = torch.randperm((count - 4) // 3, generator=torch.Generator().manual_seed(6)).tolist()
    at = iter(order[3 * place] for place in places)  # none is next to another: a crash would hide a poisoning before it
    dead, hung, poison = ([next(at) for _ in range(many)] for many in (crashes, hangs, poisons))
    kinds = {
        "segfaults": dead[::4],
        "aborts": dead[1::4],
        "exits": dead[2::4],
        "codes": dict.fromkeys(dead[3::4], 507015),
    }
    seen = inspect(order, **kinds, hangs=hung, poisons=poison)
    assert sorted(seen.failed) == sorted([*dead, *hung])
    assert {number for number, kind in seen.failed.items() if kind is Kind.TIMED_OUT} == set(hung)
    assert sorted(number_of(one.case) for one in seen.outcome.poisonings) == sorted(poison)
    assert sorted(seen.held) == sorted({*order} - {*dead, *hung})


def test_a_hundred_cases_with_planted_faults(inspect, left):
    with_planted_faults(inspect, 100, crashes=6, hangs=2, poisons=2)


@pytest.mark.slow
def test_a_thousand_cases_with_eighty_planted_faults(inspect, left):
    with_planted_faults(inspect, 1000, crashes=50, hangs=20, poisons=10)
