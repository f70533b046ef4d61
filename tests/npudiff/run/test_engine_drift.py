"""Drift of jobs: it is concluded at their end, here and where cases run elsewhere, and of equivalence only."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from npudiff.judge.drift import SCORE
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.job import Budget, Isolation, Verdict
from npudiff.run.engine import run_job
from npudiff.run.isolation.supervisor import Supervisor
from npudiff.run.messages import Task, outcome_from_message, outcome_to_message
from npudiff.run.workers import run_in_workers

BUDGET = Budget(examples=60, seed=1, shrink=False)


def high(toy):
    """Twice the numbers and a tenth: a fifth of the bound, in every case."""
    return lambda inputs, target: toy.double(inputs) + 0.1


def either_way(toy):
    """Off by as much, up or down as the numbers say."""
    return lambda inputs, target: toy.double(inputs) + 0.1 * (1 - 2 * (inputs.x % 2))


def assert_drifts(outcome):
    assert outcome.verdict is Verdict.DRIFT
    assert outcome.failure is None
    assert outcome.found
    assert outcome.findings == 1
    assert outcome.drift.output == "y"
    (drift,) = (one for one in outcome.drifts if one.direction == "offset")  # along the numbers it drifts as well
    assert drift.size == pytest.approx(0.2, rel=0.05)
    assert drift.score >= SCORE
    assert drift.cases > 50
    assert drift.shown
    assert drift.remembered


def test_a_job_that_holds_in_every_case_and_drifts(toy):
    assert_drifts(run_job(toy.job(high(toy)), BUDGET))


def test_a_job_that_is_off_by_as_much_in_both_directions_holds(toy):
    outcome = run_job(toy.job(either_way(toy)), BUDGET)
    assert outcome.verdict is Verdict.HOLDS
    assert not outcome.found
    assert outcome.drift is None
    assert {(one.output, one.direction) for one in outcome.drifts} == {("y", "gain"), ("y", "offset")}
    assert not any(one.shown or one.remembered for one in outcome.drifts)


def test_a_job_that_fails_is_not_said_to_drift(toy):
    def fails_at_last(inputs, target):
        return toy.double(inputs) + (0.1 if len(inputs.x) < 4 else 9.0)

    outcome = run_job(toy.job(fails_at_last), BUDGET)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.drifts == ()


def test_relations_are_not_measured(toy):
    outcome = run_job(toy.job(high(toy), prop=toy.REPEATS), BUDGET)
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.drifts == ()


def test_a_relation_that_has_bounds_is_not_measured(toy):
    """What it compares is another run, which is as far off, and not what is right."""
    relation = replace(EQUIVALENCE, name="relation")
    outcome = run_job(toy.job(high(toy), prop=relation), BUDGET)
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.drifts == ()


def test_cases_that_were_given_are_not_measured(toy):
    given = tuple(json.dumps({"numbers": [number], "kind": "plain"}) for number in range(60))
    outcome = run_job(toy.job(high(toy)), replace(BUDGET, examples=0, explicit_cases=given))
    assert outcome.cases == 60
    assert outcome.drifts == ()


@pytest.mark.slow
def test_a_run_that_is_out_of_time_says_what_it_has_seen(toy):
    """As many cases as there is time for: over thousands of positive numbers, too high is too long as well."""
    outcome = run_job(toy.job(high(toy)), replace(BUDGET, examples=None, seconds=1.5))
    assert outcome.verdict is Verdict.DRIFT
    (offset,) = (one for one in outcome.drifts if one.direction == "offset")
    assert offset.size == pytest.approx(0.2, rel=0.05)
    assert offset.score >= SCORE


def test_an_outcome_is_sent_with_its_drift(toy):
    outcome = run_job(toy.job(high(toy)), BUDGET)
    again, _ = outcome_from_message(outcome.job, json.loads(json.dumps(outcome_to_message(outcome, []))))
    assert again.drifts == outcome.drifts
    assert_drifts(again)


def test_in_workers(toy):
    tasks = [Task(toy.job(function(toy)), BUDGET, None) for function in (high, either_way)]
    outcomes = {index: outcome for index, outcome, _ in run_in_workers(tasks, 2)}
    assert_drifts(outcomes[0])
    assert outcomes[1].verdict is Verdict.HOLDS


@pytest.mark.skipif(sys.platform != "linux", reason="processes that may die are made on Linux")
class TestIsolated:
    def test_each_case_in_a_worker(self, toy):
        here = run_job(toy.job(high(toy)), BUDGET)
        apart = run_job(toy.job(high(toy)), replace(BUDGET, isolation=Isolation()))
        assert_drifts(apart)
        assert apart.drifts == here.drifts

    def test_whole_jobs_in_a_batch_worker(self, toy, tmp_path):
        tasks = [Task(toy.job(function(toy)), replace(BUDGET, isolation=Isolation(tmp_path)), None)
                 for function in (high, either_way)]  # fmt: skip
        supervisor = Supervisor(tasks)
        try:
            first, second = (outcome_from_message(tasks[index].job, supervisor.run(index))[0] for index in (0, 1))
        finally:
            supervisor.close()
        assert_drifts(first)
        assert second.verdict is Verdict.HOLDS


def test_the_worst_case_that_was_seen_is_kept_with_the_smallest(toy):
    """Numbers above 100 are wrong by what they are above it: the smallest case is just beyond the bound."""

    def wrong(inputs, target):
        return toy.double(inputs) + (inputs.x - 100).clamp(min=0)

    outcome = run_job(toy.job(wrong), replace(BUDGET, shrink=True))
    assert outcome.failure.case.numbers == (101,)
    assert outcome.failure.comparison.worst == 2
    worst = outcome.worst_failure
    assert worst.comparison.worst >= outcome.first_failure.comparison.worst > 2
    again, _ = outcome_from_message(outcome.job, json.loads(json.dumps(outcome_to_message(outcome, []))))
    assert again.worst_failure.case == worst.case


def test_an_exception_has_no_worst_case(toy):
    def raises(inputs, target):
        raise RuntimeError("no")

    assert run_job(toy.job(raises), BUDGET).worst_failure is None
