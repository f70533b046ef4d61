"""Walking a trace: its steps on a live object, one after the other, each compared with what the reference says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npudiff.model.comparison import Comparison
from npudiff.model.component import Session, Subject


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

    def run_to(self, case: Any) -> Comparison:  # noqa: ANN401 - a case of any component with history
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

    def _opened(self, case: Any) -> Session:  # noqa: ANN401 - a case of any component with history
        if self._session is None:
            history = self._subject.component.history
            if history is None:
                raise ValueError(f"{self._subject.component.name} has no history")
            self.case = replace(case, steps=())
            self._session = history.session(self._subject, self.case)
        return self._session
