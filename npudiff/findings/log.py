"""The log of a run: the listener that tables, records, reports and exit codes are made from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npudiff.findings.finding import Finding, read_finding
from npudiff.model.job import Job, Outcome
from npudiff.run.events import Event, JobEnded, RunEnded
from npudiff.run.plan import Plan


@dataclass(frozen=True)
class LoggedFinding:
    """A finding that was written."""

    finding: Finding
    folder: Path
    """Where it was written."""
    stage: str
    """Part of the run that found it."""


class RunLog:
    """Keeps what the events of a run say.

    Parameters
    ----------
    plan : Plan
        What is run.

    Attributes
    ----------
    ended : list of JobEnded
        Jobs, in the order in which they ended.
    started, seconds : float
        When the run began, as ``time.time()`` says it, and how long it took.
    error : BaseException or None
        What ended the run before its time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended: list[JobEnded] = []
        self._findings: list[LoggedFinding] = []
        self._order = {job.name: place for place, job in enumerate((*plan.jobs, *plan.mutants))}
        self.started = time.time()
        self._clock = time.perf_counter()
        self.seconds = 0.0
        self.error: BaseException | None = None

    def __call__(self, event: Event) -> None:
        """Take an event down."""
        if isinstance(event, JobEnded):
            self.ended.append(event)
            self._findings = [one for one in self._findings if one.folder not in event.folders]
            self._findings += [LoggedFinding(read_finding(one), one, event.stage) for one in event.folders]
        elif isinstance(event, RunEnded):
            self.seconds, self.error = time.perf_counter() - self._clock, event.error

    @property
    def findings(self) -> list[LoggedFinding]:
        """Findings in the order of the plan; a folder that was written again is the later one's."""
        return sorted(self._findings, key=lambda one: self._order.get(one.finding.job, len(self._order)))

    @property
    def outcomes(self) -> list[Outcome]:
        """Outcomes of all but mutants, in the order of the plan; a job that ran several times has several."""
        return self._outcomes_of(self.plan.jobs)

    @property
    def mutants(self) -> list[Outcome]:
        """Outcomes of mutants, in the order of the plan."""
        return self._outcomes_of(self.plan.mutants)

    def _outcomes_of(self, jobs: Sequence[Job]) -> list[Outcome]:
        names = {job.name for job in jobs}
        seen = [one.outcome for one in self.ended if one.outcome.job.name in names]
        return sorted(seen, key=lambda outcome: self._order[outcome.job.name])
