"""Judging cases of one job: in this process, or (``npudiff.run.isolation``) in one that may die of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from npudiff.judge.properties import check
from npudiff.model.anything import AnyCase
from npudiff.model.component import Comparison, Passed, Session, Subject
from npudiff.model.job import Job, Outcome


class Judge(Protocol):
    """Says of cases whether the property of a job holds."""

    @property
    def case(self) -> AnyCase:
        """What was judged last. Of a component with history: the part of the trace up to the step that failed."""

    def begin(self) -> None:
        """Forget how far a trace was walked: the next one is walked from its beginning."""

    def check(self, case: AnyCase, *, thorough: bool = True) -> Comparison | Passed:
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


class TraceExecutor:
    """The steps of a trace on a live object, as far as they were taken.

    Parameters
    ----------
    subject : Subject
        An implementation of a component with history.

    Attributes
    ----------
    case : object
        The part of the trace that was taken, the step that failed included; None before it was opened.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._session: Session | None = None
        self.case: Any = None

    def run_to(self, case: AnyCase) -> Comparison:
        """Take those steps of a trace that were not taken yet, up to the first that fails.

        Returns
        -------
        Comparison
            The one that fails, or else the one with the largest error over bound.
        """
        worst = Comparison(())
        session = self._opened(case)
        for step in case.steps[len(self.case.steps) :]:
            self.case = replace(self.case, steps=(*self.case.steps, step))
            comparison = session.take(step)
            if not comparison.holds:
                return comparison
            worst = max(worst, comparison, key=lambda one: one.worst)
        return worst

    def _opened(self, case: AnyCase) -> Session:
        if self._session is None:
            history = self._subject.component.history
            if history is None:
                raise ValueError(f"{self._subject.component.name} has no history")
            self.case = replace(case, steps=())
            self._session = history.session(self._subject, self.case)
        return self._session


class LocalJudge:
    """A judge in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.case: Any = None
        self.begin()

    def begin(self) -> None:
        """Run the next trace from its beginning."""
        subject = self._job.subject
        self._executor = None if subject.component.history is None else TraceExecutor(subject)

    def check(self, case: AnyCase, *, thorough: bool = True) -> Comparison | Passed:
        """Judge a case here."""
        del thorough
        self.case = case
        if self._executor is None:
            return check(self._job.prop, self._job.subject, case)
        try:
            return self._executor.run_to(case)
        finally:
            self.case = self._executor.case

    def close(self, outcome: Outcome) -> None:
        """Nothing to end, and nothing to add."""
