"""Running one property of one implementation on drawn cases, down to the smallest case that fails."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import seed as with_seed
from hypothesis.errors import Flaky, FlakyStrategyDefinition, Unsatisfiable

from npudiff.compare import Comparison, compare
from npudiff.component import ImplementationRaised, Subject
from npudiff.constraints import Constraints
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


class Verdict(Enum):
    """How one property ended."""

    HOLDS = "holds"
    WRONG = "wrong value"
    RAISED = "exception"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Job:
    """One property of one implementation on one target."""

    subject: Subject
    prop: Property
    constraints: Constraints

    @property
    def name(self) -> str:
        """``component.implementation.property``."""
        parts = (self.subject.component.name, self.subject.implementation.name, self.prop.name)
        return ".".join(parts)


@dataclass(frozen=True)
class Budget:
    """How long one job may look.

    Attributes
    ----------
    examples : int or None
        Cases to run; None for as many as the time allows.
    seconds : float or None
        Time after which no new case is started; None for no limit.
    seed : int or None
        Seed of the draws.
    deterministic : bool
        Draw the same cases every time even without a seed.
    shrink : bool
        Whether a failing case is shrunk.
    memory : pathlib.Path or None
        Folder in which failing cases are remembered.
    """

    examples: int | None = 100
    seconds: float | None = None
    seed: int | None = None
    deterministic: bool = True
    shrink: bool = True
    memory: Path | None = None


@dataclass(frozen=True)
class Failure:
    """A case on which the property fails."""

    case: Any
    comparison: Comparison | None
    error: BaseException | None


@dataclass
class Outcome:
    """What happened to one job.

    Attributes
    ----------
    job : Job
        What was run.
    cases : int
        Cases that were run to a verdict, up to and including the first failure.
    not_applicable : Counter
        Reasons why drawn cases were not run, with their numbers.
    features : Counter
        Regions that the cases were in.
    worst_ratio : float
        Largest error over bound of the cases that hold.
    worst_case : object
        The case of the largest ratio.
    exact : bool
        Whether every comparison asked for equality.
    seconds, seconds_to_failure, shrink_seconds : float
        Time of the whole job, until the first failure, and of shrinking.
    first_failure, failure : Failure or None
        The failing case as drawn, and as small as it became.
    remembered : bool
        Whether cases that failed in an earlier run were tried first.
    flaky : bool
        Whether the failing case did not fail again when it was repeated.
    verdict : Verdict
        How it ended.
    """

    job: Job
    cases: int = 0
    not_applicable: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    worst_ratio: float = 0.0
    worst_case: Any = None
    exact: bool = True
    seconds: float = 0.0
    seconds_to_failure: float = 0.0
    shrink_seconds: float = 0.0
    first_failure: Failure | None = None
    failure: Failure | None = None
    remembered: bool = False
    flaky: bool = False
    verdict: Verdict = Verdict.HOLDS


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
    constraints = job.constraints.within(Constraints((job.prop.within,)))
    if not constraints or not job.constraints.within(Constraints((job.prop.needs,))):
        outcome.verdict = Verdict.NOT_APPLICABLE
        return outcome
    memory = None if budget.memory is None else budget.memory / job.name
    outcome.remembered = memory is not None and memory.is_dir() and any(memory.iterdir())
    started = time.perf_counter()
    run = _Run(outcome, budget, progress, started)
    try:
        with job.subject.target.activate():
            _hypothesis_test(job, constraints, budget, run.case)()
    except (_Fails, _Stop):
        pass
    except FlakyStrategyDefinition:
        raise  # a defect of the component
    except Flaky:
        if outcome.failure is None:
            raise
        outcome.flaky = True
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
        self.allowed = job.subject.implementation.constraints.within(Constraints((job.prop.within,)))

    def case(self, case: Any) -> None:  # noqa: ANN401 - a case of any component
        """Run one case; raises ``_Fails`` if the property does not hold."""
        self._check_time()
        outcome, subject = self.outcome, self.outcome.job.subject
        values = subject.component.values(case)
        reason = self.allowed.reason_against(values)
        shrinking = outcome.failure is not None
        if reason is None:
            try:
                failure = self._judge(case)
            except NotApplicable as error:
                reason = str(error)
        if reason is not None:
            if not shrinking:
                outcome.not_applicable[reason] += 1
            return
        if not shrinking:
            outcome.cases += 1
            outcome.features.update(subject.component.features(case))
            self.progress(outcome)
        if failure is not None:
            self._record(failure)
            raise _Fails

    def _judge(self, case: Any) -> Failure | None:  # noqa: ANN401 - a case of any component
        outcome = self.outcome
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
