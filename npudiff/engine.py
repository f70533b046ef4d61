"""Running one property of one implementation on drawn cases, down to the smallest case that fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import seed as with_seed
from hypothesis.errors import Unsatisfiable

from npudiff.compare import Comparison, compare
from npudiff.component import ImplementationRaised, Subject
from npudiff.constraints import Constraints
from npudiff.outcome import Budget, Failure, Job, Outcome, Verdict
from npudiff.profiles import UNBOUNDED_EXAMPLES, hypothesis_settings
from npudiff.property import NotApplicable, Property

SHRINK_SECONDS = 30.0
"""A finding that is not minimal after this time is reported as small as it is."""


def _equivalent(subject: Subject, case: Any) -> Comparison:  # noqa: ANN401 - a case of any component
    inputs = subject.component.inputs(case)
    return compare(subject.expected(inputs), subject.run(inputs))


EQUIVALENCE = Property(
    "equivalence",
    "every element is within the reference's bound",
    _equivalent,
    share=1.0,
)


class _Fails(Exception):  # noqa: N818 - tells Hypothesis that a case fails
    pass


class _Stop(BaseException):
    """Ends a Hypothesis run at once: the budget is used up, or shrinking has taken long enough."""


Progress = Callable[[Outcome], None]


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
    started = time.perf_counter()
    run = _Run(outcome, budget, progress, started)
    with job.subject.target.activate():
        try:
            _hypothesis_test(job, job.drawn_within, budget, run.case)()
        except (_Fails, _Stop):
            run.repeat()
        except Unsatisfiable:
            outcome.not_applicable["no case could be drawn"] += 1
    outcome.seconds = time.perf_counter() - started
    _conclude(outcome)
    return outcome


def run_case(job: Job, case: Any) -> Outcome:  # noqa: ANN401 - a case of any component
    """Run the property on one given case."""
    outcome = Outcome(job)
    started = time.perf_counter()
    with job.subject.target.activate(), contextlib.suppress(_Fails):
        _Run(outcome, Budget(), lambda _: None, started).case(case)
    outcome.seconds = time.perf_counter() - started
    _conclude(outcome)
    return outcome


def _hypothesis_test(
    job: Job, constraints: Constraints, budget: Budget, body: Callable[[Any], None]
) -> Callable[[], None]:
    configured = hypothesis_settings(
        budget.examples or UNBOUNDED_EXAMPLES,
        deterministic=budget.deterministic,
        seeded=budget.seed is not None,
        shrink=budget.shrink,
        memory=None if budget.memory is None else budget.memory / job.name,
    )

    def test(case: Any) -> None:  # noqa: ANN401 - a case of any component
        body(case)

    wrapped = configured(given(case=job.subject.component.strategy(constraints))(test))
    return with_seed(budget.seed)(wrapped) if budget.seed is not None else wrapped


def _conclude(outcome: Outcome) -> None:
    if outcome.failure is not None:
        outcome.verdict = Verdict.RAISED if outcome.failure.error is not None else Verdict.WRONG
    elif not outcome.cases:
        outcome.verdict = Verdict.NOT_APPLICABLE


class _Run:
    """Runs cases for one job and keeps the account; Hypothesis decides which cases, and when to stop."""

    def __init__(self, outcome: Outcome, budget: Budget, progress: Progress, started: float) -> None:
        self.outcome, self.budget, self.progress, self.started = outcome, budget, progress, started
        job = outcome.job
        self._passed: set[Any] = set()
        self.allowed = job.subject.implementation.constraints.within(Constraints((job.prop.within,)))

    def case(self, case: Any) -> None:  # noqa: ANN401 - a case of any component
        """Run one case; raises ``_Fails`` if the property does not hold."""
        self._check_time()
        if self._first_look(case) if self.outcome.failure is None else self._fails_too(case):
            raise _Fails

    def _first_look(self, case: Any) -> bool:  # noqa: ANN401 - a case of any component
        """Run a drawn case and count it; whether it fails."""
        outcome, component = self.outcome, self.outcome.job.subject.component
        try:
            failure = self._judge(case)
        except NotApplicable as error:
            outcome.not_applicable[str(error)] += 1
            return False
        outcome.cases += 1
        outcome.features.update(component.features(case))
        self.progress(outcome)
        if failure is not None:
            self._record(failure)
        return failure is not None

    def _fails_too(self, case: Any) -> bool:  # noqa: ANN401 - a case of any component
        """Whether a case that may be smaller fails as well.

        Many sequences of choices give the same case, so the last one that failed, and those that did not, are not run
        again. The outcome keeps the last one that failed, and Hypothesis ends with the smallest.
        """
        if self.outcome.failure is not None and case == self.outcome.failure.case:
            return True
        if case in self._passed:
            return False
        try:
            failure = self._judge(case)
        except NotApplicable:
            failure = None
        if failure is None:
            self._passed.add(case)
        else:
            self._record(failure)
        return failure is not None

    def repeat(self) -> None:
        """Run the smallest failing case once more: each case was run once only."""
        if self.outcome.failure is not None:
            self.outcome.flaky = self._judge(self.outcome.failure.case) is None

    def _judge(self, case: Any) -> Failure | None:  # noqa: ANN401 - a case of any component
        outcome = self.outcome
        reason = self.allowed.reason_against(outcome.job.subject.component.values(case))
        if reason is not None:
            raise NotApplicable(reason)
        try:
            comparison = outcome.job.prop.check(outcome.job.subject, case)
        except ImplementationRaised as error:
            return Failure(case, None, error.__cause__ or error)
        if not comparison.holds:
            return Failure(case, comparison, None)
        outcome.exact = outcome.exact and comparison.exact
        if outcome.failure is None and comparison.worst >= outcome.worst_ratio:
            outcome.worst_ratio, outcome.worst_case = comparison.worst, case
        return None

    def _record(self, failure: Failure) -> None:
        now = time.perf_counter() - self.started
        if self.outcome.first_failure is None:
            self.outcome.first_failure = failure
            self.outcome.seconds_to_failure = now
        self.outcome.failure = failure
        self.outcome.shrink_seconds = now - self.outcome.seconds_to_failure

    def _check_time(self) -> None:
        now = time.perf_counter() - self.started
        if self.outcome.failure is not None:
            if now - self.outcome.seconds_to_failure > SHRINK_SECONDS:
                raise _Stop
        elif self.budget.seconds is not None and now > self.budget.seconds:
            raise _Stop
