"""Judging cases of one job: in this process, or (``npudiff.run.isolation``) in one that may die of it."""

from __future__ import annotations

from typing import Any, Protocol

from npudiff.judge.trace import TraceExecutor
from npudiff.model.comparison import Comparison, Passed
from npudiff.model.job import Job
from npudiff.model.outcome import Outcome


class Judge(Protocol):
    """Says of cases whether the property of a job holds."""

    @property
    def case(self) -> Any:  # noqa: ANN401 - a case of any component
        """What was judged last. Of a component with history: the part of the trace up to the step that failed."""

    def begin(self) -> None:
        """Forget how far a trace was walked: the next one is walked from its beginning."""

    def check(self, case: Any, *, thorough: bool = True) -> Comparison | Passed:  # noqa: ANN401 - a case of any component
        """Judge a case, or those steps of a trace that were not walked yet.

        Parameters
        ----------
        case : object
            What is judged.
        thorough : bool
            Whether to find out whose fault a failure is; while a failure is made smaller nobody asks.

        Raises
        ------
        ImplementationRaised
            If the implementation raises, or what runs it dies or does not answer.
        NotApplicable
            If the property says nothing of the case.
        """

    def close(self, outcome: Outcome) -> None:
        """End what it holds, and add to the account what it knows besides."""


class LocalJudge:
    """A judge in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._executor = TraceExecutor(job.subject)
        self.case: Any = None

    def begin(self) -> None:
        """Forget how far a trace was walked."""
        self._executor = TraceExecutor(self._job.subject)

    def check(self, case: Any, *, thorough: bool = True) -> Comparison | Passed:  # noqa: ANN401 - a case of any component
        """Judge a case here."""
        del thorough
        self.case = case
        if self._job.subject.component.history is None:
            return self._job.prop.check(self._job.subject, case)
        try:
            return self._executor.run_to(case)
        finally:
            self.case = self._executor.case

    def close(self, outcome: Outcome) -> None:
        """Nothing to end, and nothing to add."""
