"""What a run has seen so far: the listener from which tables, records, reports and exit codes are made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from npudiff.findings.finding import Finding, read_finding
from npudiff.model.outcome import Outcome
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
    findings : list of LoggedFinding
        In the order in which they were written; a folder that is written again is the later one's.
    started, seconds : float
        When the run began, as ``time.time()`` says it, and how long it took.
    error : BaseException or None
        What ended the run before its time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended: list[JobEnded] = []
        self.findings: list[LoggedFinding] = []
        self.started = time.time()
        self._clock = time.perf_counter()
        self.seconds = 0.0
        self.error: BaseException | None = None

    def __call__(self, event: Event) -> None:
        """Take an event down."""
        if isinstance(event, JobEnded):
            self.ended.append(event)
            self.findings = [one for one in self.findings if one.folder not in event.folders]
            self.findings += [LoggedFinding(read_finding(one), one, event.stage) for one in event.folders]
        elif isinstance(event, RunEnded):
            self.seconds, self.error = time.perf_counter() - self._clock, event.error

    @property
    def outcomes(self) -> list[Outcome]:
        """Outcomes of all but mutants, in the order of the plan; a job that ran several times has several."""
        order = {job.name: place for place, job in enumerate(self.plan.jobs)}
        seen = [one.outcome for one in self.ended if one.outcome.job.name in order]
        return sorted(seen, key=lambda outcome: order[outcome.job.name])

    @property
    def mutants(self) -> list[Outcome]:
        """Outcomes of mutants, in the order of the plan."""
        order = {job.name: place for place, job in enumerate(self.plan.mutants)}
        seen = [one.outcome for one in self.ended if one.outcome.job.name in order]
        return sorted(seen, key=lambda outcome: order[outcome.job.name])
