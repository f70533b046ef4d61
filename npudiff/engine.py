"""Running one property of one implementation on drawn cases, down to the smallest case that fails."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis.errors import Unsatisfiable

from npudiff.calls import EARLIER_CALLS
from npudiff.case_run import CaseRun, Fails, Progress, Stop
from npudiff.compare import Comparison, compare
from npudiff.component import Component, Subject
from npudiff.implementation import Implementation
from npudiff.outcome import Budget, Job, Outcome, Verdict
from npudiff.property import Property
from npudiff.trace_run import TraceRun
from npudiff.walk import Walk


def _equivalent(subject: Subject, case: Any) -> Comparison:  # noqa: ANN401 - a case of any component
    if subject.component.history is not None:
        return Walk(subject).to(case)
    inputs = subject.component.inputs(case)
    return compare(subject.expected(inputs), subject.run(inputs))


EQUIVALENCE = Property(
    "equivalence",
    "every element is within the reference's bound",
    _equivalent,
    share=1.0,
)


def properties_of(component: Component) -> tuple[Property, ...]:
    """Return everything that must hold for each implementation of a component: what it says itself, and what all share.

    A component with history is tested by nothing but sequences of calls already.
    """
    shared = () if component.history is not None else (EARLIER_CALLS,)
    return (EQUIVALENCE, *component.relations, *shared)


def property_of_mutant(item: Implementation) -> Property:
    """Return the property by which an implementation that is wrong on purpose has to be found."""
    return EQUIVALENCE if item.opens is None else EARLIER_CALLS


def run_job(job: Job, budget: Budget, progress: Progress = lambda _: None) -> Outcome:
    """Draw cases, run the property on each, and shrink the first failure.

    Exceptions of the implementation are findings. Exceptions of anything else (strategy, inputs, reference) are
    defects of npudiff or of the component and propagate.
    """
    outcome = Outcome(job)
    if not job.applies:
        outcome.verdict = Verdict.NOT_APPLICABLE
        return outcome
    memory = None if budget.memory is None else budget.memory / job.name
    outcome.remembered = memory is not None and memory.is_dir() and any(memory.iterdir())
    run = _run_of(outcome, budget, progress)
    with job.subject.target.activate():
        try:
            run.with_hypothesis()
        except (Fails, Stop):
            run.conclude()
        except Unsatisfiable:
            outcome.not_applicable["no case could be drawn"] += 1
    outcome.seconds = run.seconds
    _conclude(outcome)
    return outcome


def run_case(job: Job, case: Any) -> Outcome:  # noqa: ANN401 - a case of any component
    """Run the property on one given case."""
    outcome = Outcome(job)
    run = _run_of(outcome, Budget(), lambda _: None)
    with job.subject.target.activate(), contextlib.suppress(Fails):
        run.case(case)
    outcome.seconds = run.seconds
    _conclude(outcome)
    return outcome


def _conclude(outcome: Outcome) -> None:
    if outcome.failure is not None:
        outcome.verdict = Verdict.RAISED if outcome.failure.error is not None else Verdict.WRONG
    elif not outcome.cases:
        outcome.verdict = Verdict.NOT_APPLICABLE


def _run_of(outcome: Outcome, budget: Budget, progress: Progress) -> CaseRun:
    history = outcome.job.subject.component.history
    return CaseRun(outcome, budget, progress) if history is None else TraceRun(outcome, budget, progress, history)
