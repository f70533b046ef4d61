"""Running one property of one implementation on drawn cases, down to the smallest case that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis.errors import Unsatisfiable

from npudiff.judge.judge import Judge, LocalJudge
from npudiff.model.job import Budget, Isolation, Job
from npudiff.model.outcome import Outcome, Verdict
from npudiff.run.case_run import CaseRun, Fails, Progress, Stop
from npudiff.run.trace_run import TraceRun


def run_job(job: Job, budget: Budget, progress: Progress = lambda _: None, *, judge: Judge | None = None) -> Outcome:
    """Draw cases, run the property on each, and shrink the first failure.

    They are judged as the budget says, or by the judge that is given.

    Exceptions of the implementation are findings. Exceptions of anything else (strategy, inputs, reference) are
    defects of npudiff or of the component and propagate.
    """
    outcome = Outcome(job)
    if not job.applies:
        outcome.verdict = Verdict.NOT_APPLICABLE
        return outcome
    memory = budget.example_database_of(job)
    outcome.remembered = memory is not None and memory.is_dir() and any(memory.iterdir())
    with job.subject.target.activate(), _run_of(outcome, budget, progress, judge) as run:
        try:
            run.run_explicit_cases(budget.explicit_cases)
            if budget.examples != 0:
                run.with_hypothesis()
        except (Fails, Stop):
            run.conclude()
        except Unsatisfiable:
            outcome.not_applicable["no case could be drawn"] += 1
    outcome.seconds = run.seconds
    _conclude(outcome)
    return outcome


def run_case(
    job: Job,
    case: Any,  # noqa: ANN401 - of any component
    isolation: Isolation | None = None,
    *,
    judge: Judge | None = None,
) -> Outcome:
    """Run the property on one given case."""
    return run_cases(job, (case,), isolation, judge=judge)


def run_cases(
    job: Job, cases: Sequence[Any], isolation: Isolation | None = None, *, judge: Judge | None = None
) -> Outcome:
    """Run the property on given cases, one after the other in one process, until one fails."""
    outcome = Outcome(job)
    with (
        job.subject.target.activate(),
        _run_of(outcome, Budget(isolation=isolation), lambda _: None, judge) as run,
        contextlib.suppress(Fails),
    ):
        for case in cases:
            run.case(case)
    outcome.seconds = run.seconds
    _conclude(outcome)
    return outcome


def _conclude(outcome: Outcome) -> None:
    if outcome.failure is not None:
        outcome.verdict = Verdict.RAISED if outcome.failure.error is not None else Verdict.WRONG
    elif not outcome.cases:
        outcome.verdict = Verdict.NOT_APPLICABLE


@contextlib.contextmanager
def _run_of(outcome: Outcome, budget: Budget, progress: Progress, judge: Judge | None = None) -> Iterator[CaseRun]:
    """Give what runs cases of a job, with a judge that is closed at the end."""
    history = outcome.job.subject.component.history
    judge = judge or _judge_of(outcome.job, budget)
    try:
        if history is None:
            yield CaseRun(outcome, budget, progress, judge)
        else:
            yield TraceRun(outcome, budget, progress, judge, history)
    finally:
        judge.close(outcome)


def _judge_of(job: Job, budget: Budget) -> Judge:
    if budget.isolation is None:
        return LocalJudge(job)
    from npudiff.run.isolation.judge import IsolatedJudge  # noqa: PLC0415 - the parts that are not on every system

    return IsolatedJudge(job, budget.isolation)
