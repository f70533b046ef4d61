"""Traces that a state machine draws: how many, within what, judged step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis.stateful import rule

from npudiff.judge.drift import measures_drift
from npudiff.model.case import dumps
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Isolation, Verdict
from npudiff.run.engine import run_job


def test_a_right_implementation_holds_in_every_step(watched, tally):
    outcome = run_job(tally.job(watched), tally.SEEDED)
    assert outcome.verdict is Verdict.HOLDS
    assert (outcome.cases, outcome.steps) == (20, sum(len(trace) - 1 for trace in watched.traces))
    assert outcome.steps == 20 * 12
    assert outcome.exact
    assert 10 < outcome.features["add"] < 20  # Hypothesis leaves out some rules in some runs
    assert 10 < outcome.features["undo"] < 20


@pytest.mark.slow
def test_isolated_traces_take_the_steps_that_they_take_in_this_process(tally):
    """Each begins anew: a step of a trace before it is none of its own."""

    class Loses(tally.Tally):
        def add(self, number):
            super().add(number if number < 90 else 0)

    for kind in (tally.Tally, Loses):
        here, apart = (run_job(tally.job(kind), replace(tally.SEEDED, isolation=one)) for one in (None, Isolation()))
        assert (apart.verdict, apart.cases, apart.steps) == (here.verdict, here.cases, here.steps)
        assert (apart.failure and apart.failure.case) == (here.failure and here.failure.case)


def test_runs_are_drawn_afresh(watched, tally):
    """Were steps copied from run to run, as Hypothesis does after some runs, most would have common ones."""
    run_job(tally.job(watched), Budget(examples=40, seed=2))
    numbers = [number for trace in watched.traces for number in trace[1:] if number != "undo"]
    starts = {tuple(trace[:3]) for trace in watched.traces}
    assert len(starts) >= 36
    assert max(numbers.count(number) for number in set(numbers) - {1}) <= len(numbers) / 20


def test_no_trace_is_walked_twice(watched, tally):
    run_job(tally.job(watched), Budget(examples=40, seed=2))
    assert len({tuple(map(str, trace)) for trace in watched.traces}) == len(watched.traces)


@pytest.mark.slow
def test_the_number_of_steps_is_the_components_or_the_budgets(watched, tally):
    for steps in (None, 5, 40):
        watched.traces = ()
        run_job(tally.job(watched), replace(tally.SEEDED, steps=steps))
        assert max(len(trace) - 1 for trace in watched.traces) == (steps or 12)


def test_traces_are_not_measured_for_drift(tally):
    """Each step has the errors of those before it: they are no independent witnesses."""
    assert not measures_drift(tally.job())


def test_an_exception_in_a_step_is_a_finding(tally):
    class Breaks(tally.Tally):
        def add(self, number):
            if number > 50:
                raise RuntimeError("507035: vector core exception")
            super().add(number)

    outcome = run_job(tally.job(Breaks), tally.SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case == tally.TallyCase(0, (tally.Add(51),))
    assert str(outcome.failure.error) == "507035: vector core exception"


def test_an_implementation_that_does_not_open_is_a_finding_without_steps(tally):
    def closed(inputs, target):
        raise RuntimeError("no memory")

    outcome = run_job(tally.job(closed), tally.SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case == tally.TallyCase()
    assert (outcome.cases, outcome.steps) == (1, 0)


def test_an_object_that_lacks_a_method_is_a_finding(tally):
    outcome = run_job(tally.job(lambda inputs, target: object()), tally.SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert "add" in str(outcome.failure.error) or "undo" in str(outcome.failure.error)
    assert len(outcome.failure.case.steps) == 1


def test_a_step_that_writes_into_what_it_is_given_is_a_finding(tally):
    class Writes(tally.Tally):
        def add(self, number):
            super().add(number)
            number.zero_()

    outcome = run_job(tally.job(Writes), tally.SEEDED)
    assert "wrote into its inputs" in str(outcome.failure.error)


def test_every_step_waits_for_the_device(tally):
    waited = []
    made = tally.job()
    target = replace(made.subject.target, synchronize=lambda: waited.append(1))
    outcome = run_job(replace(made, subject=replace(made.subject, target=target)), Budget(examples=2, seed=0))
    assert len(waited) == outcome.cases + 2 * outcome.steps


def test_runs_are_drawn_within_what_is_supported(watched, tally):
    outcome = run_job(tally.job(watched, supports={"start": (7,), "step": ()}), tally.SEEDED)
    assert {trace[0] for trace in watched.traces} == {7}
    assert not any("undo" in trace for trace in watched.traces)
    assert not outcome.not_applicable
    assert outcome.cases == 20


def narrower(made, **supports):
    """A tally.job whose cases are drawn as before, for an implementation that supports less."""
    item = replace(made.subject.implementation, constraints=Constraints.of(supports))
    return replace(made, subject=replace(made.subject, implementation=item))


def test_a_run_that_begins_outside_what_is_supported_is_counted_and_not_taken(watched, tally):
    outcome = run_job(narrower(tally.job(watched), start=range(50)), Budget(examples=10, seed=0))
    assert outcome.cases == 10
    assert outcome.not_applicable.total() > 2
    assert all("start" in reason for reason in outcome.not_applicable)
    assert all(trace[0] < 50 for trace in watched.traces)


def test_a_run_ends_with_a_step_that_is_not_supported(watched, tally):
    outcome = run_job(narrower(tally.job(watched), step=()), Budget(examples=10, seed=0))
    assert set(outcome.not_applicable) == {"step undo is not in {}"}
    assert not any("undo" in trace for trace in watched.traces)


def test_a_machine_that_never_applies_ends_and_says_so(tally):
    outcome = run_job(narrower(tally.job(), start=(500,)), tally.SEEDED)
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert outcome.cases == 0
    assert outcome.not_applicable.total() == 9


def test_the_same_seed_draws_the_same_traces_and_another_one_others(watched, tally):
    drawn = []
    for seed in (7, 7, 8):
        watched.traces = ()
        run_job(tally.job(watched), Budget(examples=20, seed=seed, deterministic=False))
        drawn.append(watched.traces)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_a_deterministic_run_draws_the_same_traces_and_a_free_one_others(watched, tally):
    drawn = []
    for deterministic in (True, True, False, False):
        watched.traces = ()
        run_job(tally.job(watched), Budget(examples=20, deterministic=deterministic))
        drawn.append(watched.traces)
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[3]


def test_a_budget_of_seconds_stops_in_the_middle_of_a_run(tally):
    class Slow(tally.Tally):
        def total(self):
            import time

            time.sleep(0.005)
            return super().total()

    outcome = run_job(tally.job(Slow), Budget(examples=None, seconds=0.3, steps=1000))
    assert outcome.verdict is Verdict.HOLDS
    assert 0.25 < outcome.seconds < 2
    assert 5 < outcome.steps < 100


@pytest.mark.slow
def test_a_budget_of_seconds_runs_more_than_the_default_number(tally):
    assert run_job(tally.job(), Budget(examples=None, seconds=3.0)).cases > 50


def test_a_failure_is_remembered_and_tried_first(tmp_path, tally):
    budget = Budget(examples=50, deterministic=False, example_database=tmp_path)
    first = run_job(tally.job(tally.Forgets), budget)
    assert not first.remembered
    again = run_job(tally.job(tally.Forgets), budget)
    assert again.remembered
    assert again.cases == 1
    assert again.first_failure.case == first.first_failure.case
    assert again.failure.case == first.failure.case


def test_a_seeded_or_deterministic_run_remembers_nothing(tmp_path, tally):
    for budget in (Budget(seed=1, example_database=tmp_path), Budget(deterministic=True, example_database=tmp_path)):
        assert run_job(tally.job(tally.Forgets), budget).failure is not None
        assert list(tmp_path.iterdir()) == []


def test_progress_hears_of_every_run(tally):
    heard = []
    run_job(tally.job(), tally.SEEDED, lambda outcome: heard.append(outcome.cases))
    assert heard == list(range(1, 21))


def test_a_machine_with_one_trace_ends(watched, tally):
    history = tally.machine(
        tally.TallyMachine,
        opening=lambda self: tally.TallyCase(),
        add=rule()(lambda self: self.take(tally.Add(3))),
        undo=None,
    )
    outcome = run_job(tally.job(watched, history=history), tally.SEEDED)
    assert outcome.verdict is Verdict.HOLDS
    assert (outcome.cases, outcome.steps) == (1, 12)
    assert len(watched.traces) == 1


def test_traces_that_are_given_leave_room_for_drawn_ones(tally):
    texts = tuple(dumps(tally.TallyCase(start, (tally.Add(7),))) for start in range(8))
    drawn = run_job(tally.job(tally.Tally), replace(tally.SEEDED, examples=5)).cases
    outcome = run_job(tally.job(tally.Tally), replace(tally.SEEDED, examples=5, explicit_cases=texts))
    assert outcome.cases == drawn + 8
    assert run_job(tally.job(tally.Tally), replace(tally.SEEDED, examples=0, explicit_cases=texts)).cases == 8
