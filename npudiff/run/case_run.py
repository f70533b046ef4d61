"""The cases of one job: Hypothesis decides which, and when to stop; the run judges them and keeps the account."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given
from hypothesis import seed as with_seed

from npudiff.draw.presets import UNBOUNDED_EXAMPLES, hypothesis_settings
from npudiff.judge.judge import Judge
from npudiff.model.codec import loads
from npudiff.model.comparison import Comparison
from npudiff.model.component import ImplementationRaised, NotApplicable
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget
from npudiff.model.outcome import Failure, Outcome

SHRINK_SECONDS = 30.0
"""A finding that is not minimal after this time is reported as small as it is."""


REPEATED = 3
"""Times that the smallest failing case is run again, to tell whether it always fails."""


class Fails(Exception):  # noqa: N818 - tells Hypothesis that a case fails
    """A case fails."""


class Stop(BaseException):
    """Ends a Hypothesis run at once: the budget is used up, or shrinking has taken long enough."""


Progress = Callable[[Outcome], None]


class CaseRun:
    """Runs drawn cases of one job.

    Parameters
    ----------
    outcome : Outcome
        The account, which is kept up to date.
    budget : Budget
        How long to look.
    progress : callable
        Called after each case.
    judge : Judge
        Judges cases.
    """

    def __init__(self, outcome: Outcome, budget: Budget, progress: Progress, judge: Judge) -> None:
        self.outcome, self.budget, self.progress, self.judge = outcome, budget, progress, judge
        self.started = time.perf_counter()
        job = outcome.job
        self._passed: set[Any] = set()
        self.gives, self.given_cases = False, 0  # those do not count towards the cases that are drawn
        self.allowed = job.subject.implementation.constraints.within(Constraints((job.prop.within,)))

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.perf_counter() - self.started

    @property
    def time_is_up(self) -> bool:
        """Whether no new case may be started."""
        budget = self.budget
        over = budget.seconds is not None and self.seconds > budget.seconds
        return over or (budget.until is not None and time.monotonic() > budget.until)

    def with_hypothesis(self) -> None:
        """Draw cases and run them."""
        job, seed = self.outcome.job, self.budget.drawn_with

        def test(case: Any) -> None:  # noqa: ANN401 - a case of any component
            self.case(case)

        budget = self.budget
        configured = hypothesis_settings(
            budget.examples or UNBOUNDED_EXAMPLES,
            deterministic=budget.deterministic,
            seeded=seed is not None,
            shrink=budget.shrink,
            memory=budget.example_database_of(job),
            shared=budget.shared_database_of(job),
        )
        wrapped = given(case=job.subject.component.strategy(job.drawn_within))(test)
        configured(
            wrapped if seed is None else with_seed(seed)(wrapped)
        )()  # a seed that came later would take the memory

    def run_explicit_cases(self, texts: Sequence[str]) -> None:
        """Run cases that are there as JSON, as far as they make sense: they may come from elsewhere."""
        component = self.outcome.job.subject.component
        self.gives = True
        for text in texts:
            try:
                case = loads(component.case_type, text)
                component.check_case(case)
            except ValueError:
                continue  # of another version
            self.case(case)
        self.gives, self.given_cases = False, self.outcome.cases

    def case(self, case: Any) -> None:  # noqa: ANN401 - a case of any component
        """Run one case; raises ``Fails`` if the property does not hold."""
        self._check_time()
        if self._run_generated_case(case) if self.outcome.failure is None else self._still_fails(case):
            raise Fails

    def _run_generated_case(self, case: Any) -> bool:  # noqa: ANN401 - a case of any component
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

    def _still_fails(self, case: Any) -> bool:  # noqa: ANN401 - a case of any component
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

    def conclude(self) -> None:
        """Run the smallest failing case again, to tell whether it always fails: each case was run once only.

        Where it is judged in processes of its own that is done there, and asking once is enough.
        """
        failure = self.outcome.failure
        if failure is None:
            return
        runs = 1 if self.budget.isolation is not None else REPEATED
        failed = 0
        for _ in range(runs):
            self.judge.begin()
            failed += self._judge(failure.case, thorough=True) is not None
        self.outcome.repeated = (failed, runs)

    def _judge(self, case: Any, *, thorough: bool = False) -> Failure | None:  # noqa: ANN401 - a case of any component
        """Judge a case; of a trace, what fails is the part up to the step that failed."""
        self._require(case)
        outcome = self.outcome
        try:
            comparison = self.judge.check(case, thorough=thorough or outcome.failure is None)
        except ImplementationRaised as error:
            return Failure(self.judge.case, None, error.__cause__ or error)
        if isinstance(comparison, Comparison) and not comparison.holds:
            return Failure(self.judge.case, comparison, None)
        outcome.exact = outcome.exact and comparison.exact
        if outcome.failure is None and comparison.worst >= outcome.worst_ratio:
            outcome.worst_ratio, outcome.worst_case = comparison.worst, self.judge.case
        return None

    def _require(self, case: Any) -> None:  # noqa: ANN401 - a case of any component
        job = self.outcome.job
        values = job.subject.component.values(case)
        reason = self.allowed.reason_against(values)
        if reason is not None:
            raise NotApplicable(reason)
        reason = job.subject.reason_against(case)
        if reason is not None:
            raise NotApplicable(reason)

    def _record(self, failure: Failure) -> None:
        now = self.seconds
        if self.outcome.first_failure is None:
            self.outcome.first_failure = failure
            self.outcome.seconds_to_failure = now
        self.outcome.failure = failure
        self.outcome.shrink_seconds = now - self.outcome.seconds_to_failure

    def _check_time(self) -> None:
        now = self.seconds
        if self.outcome.failure is not None:
            if now - self.outcome.seconds_to_failure > SHRINK_SECONDS:
                raise Stop
        elif self.time_is_up:
            raise Stop
