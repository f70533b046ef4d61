"""A trace that fails becomes the smallest one."""

from __future__ import annotations

from dataclasses import replace

from npudiff.model.job import Verdict
from npudiff.run.engine import run_job


def test_a_trace_that_fails_is_shrunk_to_the_smallest(tally):
    outcome = run_job(tally.job(tally.Forgets), tally.SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == tally.TallyCase(0, (tally.Add(1), tally.Add(1), tally.Add(21), tally.Undo()))
    assert outcome.failure.comparison.context == f"after {tally.Undo()}"
    assert not outcome.flaky
    assert len(outcome.first_failure.case.steps) >= 4
    assert outcome.first_failure.case != outcome.failure.case
    assert outcome.cases <= 20


def test_the_trace_ends_with_the_step_that_fails(watched, tally):
    class ForgetsHere(tally.Forgets, watched):
        pass

    outcome = run_job(tally.job(ForgetsHere), replace(tally.SEEDED, shrink=False))
    assert outcome.failure.case == outcome.first_failure.case
    asked = [step.number if isinstance(step, tally.Add) else "undo" for step in outcome.failure.case.steps]
    assert asked[-1] == "undo"
    assert ForgetsHere.traces[-2][1:] == ForgetsHere.traces[-1][1:] == asked  # the last one repeats it


def test_shrinking_walks_each_trace_once_and_only_legal_ones(watched, tally):
    class ForgetsHere(tally.Forgets, watched):
        pass

    outcome = run_job(tally.job(ForgetsHere), tally.SEEDED)
    shrinking = ForgetsHere.traces[outcome.cases : -1]
    assert len({tuple(map(str, trace)) for trace in shrinking}) > len(shrinking) / 2  # a trace may end before its end
    assert all(number != 0 for trace in ForgetsHere.traces for number in trace[1:])
    assert len(shrinking) < 60


def test_what_shrinking_meets_does_not_count(tally):
    shrunk, drawn = (
        run_job(tally.job(tally.Forgets), replace(tally.SEEDED, shrink=shrink)) for shrink in (True, False)
    )
    assert (shrunk.cases, shrunk.steps, shrunk.features) == (drawn.cases, drawn.steps, drawn.features)
    assert not shrunk.not_applicable


def test_shrinking_ends_after_its_time(monkeypatch, tally):
    monkeypatch.setattr("npudiff.run.engine.SHRINK_SECONDS", 0.0)
    outcome = run_job(tally.job(tally.Forgets), tally.SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == outcome.first_failure.case


def test_shrinking_stays_within_what_is_supported(tally):
    outcome = run_job(tally.job(tally.Forgets, supports={"number": range(7, 100), "start": (5,)}), tally.SEEDED)
    assert outcome.failure.case == tally.TallyCase(5, (tally.Add(7), tally.Add(7), tally.Add(21), tally.Undo()))


def test_a_failure_that_does_not_repeat_is_flaky_and_still_a_finding(tally):
    asked = []

    class Moody(tally.Tally):
        def total(self):
            asked.append(1)
            return super().total() + (len(asked) == 40)

    outcome = run_job(tally.job(Moody), tally.SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.flaky
    assert outcome.failure.case == outcome.first_failure.case
