"""The log of a run: the listener that tables, records, reports and exit codes are made from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from npudiff.errors import ExitCode, UsageError
from npudiff.findings.finding import FINDING_FILE, Finding, finding_of_plain, read_finding
from npudiff.model.job import Job, Outcome, Verdict, unjudged
from npudiff.run.events import Event, JobEnded, RunEnded
from npudiff.run.plan import Plan


@dataclass(frozen=True)
class LoggedFinding:
    """A finding of a run."""

    finding: Finding
    folder: Path
    """Where it was written."""
    stage: str
    """Part of the run that found it."""
    problem: str = ""
    """Why it could not be written, or not all of it; empty if it was."""
    written: bool = True
    """Whether the folder is there."""

    @property
    def unwritten(self) -> str:
        """Why there is no folder; empty if there is one."""
        return "" if self.written else self.problem


AnyLogged = TypeVar("AnyLogged", bound=LoggedFinding)


def logged(event: JobEnded) -> list[LoggedFinding]:
    """Return the findings of a job that has ended."""
    return [
        LoggedFinding(finding_of_plain(one.content), one.folder, event.stage, one.problem, one.written)
        for one in event.kept
    ]


def without_those_again(findings: Sequence[AnyLogged], event: JobEnded) -> list[AnyLogged]:
    """Return the findings of jobs that ended before, without those that this one has as well."""
    again = {one.folder for one in event.kept}
    return [one for one in findings if one.folder not in again]


CLOCKS_APART = 0.02
"""Seconds by which the time of a file may be behind ``time.time()``: a file system takes that of the last tick."""


def untold(root: Path, since: float, told: Collection[Path]) -> Iterator[tuple[Finding, Path]]:
    """Yield findings below a folder that were written since a time and are not told yet.

    A worker writes a finding before it tells of it; one that is ended between the two leaves it.

    Parameters
    ----------
    root : pathlib.Path
        Folder of findings.
    since : float
        Time as ``time.time()`` says it.
    told : collection of pathlib.Path
        Folders of those that are known.
    """
    names = {folder.name for folder in told}
    folders: list[Path] = []
    with contextlib.suppress(OSError):  # there is none, or it is not ours to read
        folders = sorted(root.iterdir())
    for folder in folders:
        with contextlib.suppress(OSError, UsageError):  # of somebody else, or not whole
            if folder.name not in names and (folder / FINDING_FILE).stat().st_mtime >= since - CLOCKS_APART:
                yield read_finding(folder), folder


class NotEnded(Exception):
    """The run goes on, or was ended by something that let it say nothing."""

    def __init__(self) -> None:
        super().__init__("the run goes on, or was killed")


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
        What ended the run before its time; ``NotEnded`` until it is over.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended: list[JobEnded] = []
        self._findings: list[LoggedFinding] = []
        self._order = {job.name: place for place, job in enumerate((*plan.jobs, *plan.mutants))}
        self.started = time.time()
        self._clock = time.perf_counter()
        self.seconds = 0.0
        self.error: BaseException | None = NotEnded()

    def __call__(self, event: Event) -> None:
        """Take an event down."""
        if isinstance(event, JobEnded):
            self.ended.append(event)
            self._findings = without_those_again(self._findings, event)
            self._findings += logged(event)
        elif isinstance(event, RunEnded):
            self.seconds, self.error = time.perf_counter() - self._clock, event.error

    def add_untold(self, root: Path) -> None:
        """Add findings of this run that were written and of which no event came: the run was ended before."""
        told = [one.folder for one in self._findings]
        self._findings += [LoggedFinding(finding, folder, "") for finding, folder in untold(root, self.started, told)]

    @property
    def findings(self) -> list[LoggedFinding]:
        """Findings in the order of the plan; a folder that was written again is the later one's."""
        return sorted(self._findings, key=lambda one: self._order.get(one.finding.job, len(self._order)))

    @property
    def unjudged(self) -> Mapping[tuple[str, str], str]:
        """Implementations that the user named, of which no case was judged, and why.

        One without a case in ``--where`` is not run.
        """
        return {**unjudged(self.outcomes), **self.plan.unimported} if self.plan.request.named else {}

    @property
    def code(self) -> ExitCode:
        """The exit code of what was seen, of a run that came to its end."""
        if self.findings:
            return ExitCode.FINDINGS
        if self.unjudged or not any(outcome.cases for outcome in (*self.outcomes, *self.mutants)):
            return ExitCode.NOTHING_RAN
        missed = self.plan.judges_mutants and any(outcome.verdict is Verdict.HOLDS for outcome in self.mutants)
        return ExitCode.FINDINGS if missed else ExitCode.CLEAN

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
