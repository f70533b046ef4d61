"""The result of a gate: outcomes, findings, known issues, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from npudiff.errors import ExitCode
from npudiff.findings.log import LoggedFinding
from npudiff.gate.known import KnownIssue
from npudiff.model.job import Outcome, unjudged
from npudiff.run.plan import Plan
from npudiff.text import counted

NOT_ENDED = "the run goes on, or was killed"
"""Says of a gate that it has not come to its end: what it leaves on its way is never green."""


class Part(Enum):
    """Parts of a gate."""

    SHARED = "what others found"
    FIXED = "the same cases every time"
    KNOWN = "cases of a known issue"
    ROTATING = "rotating"


class State(Enum):
    """The state of a known issue in this run."""

    SEEN = "still fails"
    QUIET = "did not fail this time, and comes and goes"
    ELSEWHERE = "not known here"
    STALE = "does not fail any more"
    UNMATCHED = "matches nothing"
    EXPIRED = "has expired"
    NOT_RUN = "was not run"

    @property
    def closes(self) -> bool:
        """Whether the gate is closed by it."""
        return self in (State.STALE, State.UNMATCHED, State.EXPIRED)


@dataclass(frozen=True)
class KnownStatus:
    """A known issue and its state in this run."""

    issue: KnownIssue
    """The entry."""
    state: State
    """What became of it."""
    why: str = ""
    """More of that, for people."""

    @property
    def line(self) -> str:
        """What to say about it."""
        return f"{self.issue.name}: {self.state.value}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class ReportedFinding(LoggedFinding):
    """A finding of the gate."""

    warns: bool = False
    """Whether it is a warning that does not close the gate."""


@dataclass
class GateResult:
    """The result of a gate so far."""

    plan: Plan
    """What it was to run."""
    rotation: str
    """Name of the rotating part."""
    budget: float
    """Seconds that it may take."""
    known_file: Path | None = None
    """Where known issues are from."""
    outcomes: list[tuple[Part, Outcome]] = field(default_factory=list)
    """What ran, in the order in which it ended."""
    findings: list[ReportedFinding] = field(default_factory=list)
    """What is to be reported."""
    known: list[KnownStatus] = field(default_factory=list)
    """What became of each known issue."""
    unfinished: list[str] = field(default_factory=list)
    """Jobs of the fixed part for which there was no time."""
    turns: int = 0
    """Turns of the rotating part that were begun."""
    notes: list[str] = field(default_factory=list)
    """What else a reader should know."""
    seconds: float = 0.0
    """What it took."""
    lost: str = ""
    """Why the device is lost; empty if it is not."""
    ended: str = NOT_ENDED
    """What ended the run before its time (an interrupt, a defect); empty if nothing did, and it is over."""

    @property
    def cases(self) -> int:
        """Cases that were run to a verdict."""
        return sum(outcome.cases for _, outcome in self.outcomes)

    @property
    def unjudged(self) -> list[tuple[tuple[str, str], str]]:
        """Implementations that were run and of which no case came to a verdict, or that do not import, and why.

        Those that a known issue names, or that have a finding, are not among them.
        """
        idle = unjudged(outcome for _, outcome in self.outcomes)
        unimported = self.plan.unimported
        if not idle and not unimported:
            return []
        told = {(status.issue.component, status.issue.implementation) for status in self.known}
        told |= {one.finding.subject for one in self.findings}
        run = {names: idle[names] for names in self.by_implementation() if names in idle}
        return [(names, why) for names, why in {**run, **unimported}.items() if names not in told]

    @property
    def closing(self) -> list[ReportedFinding]:
        """Findings that close the gate."""
        return [told for told in self.findings if not told.warns]

    @property
    def code(self) -> ExitCode:
        """Exit code: whether it is open, and if not, why."""
        if self.lost:
            return ExitCode.DEVICE_LOST
        if self.ended:
            return ExitCode.INTERRUPTED if self.ended == KeyboardInterrupt.__name__ else ExitCode.INTERNAL
        closed = any(status.state.closes for status in self.known)
        if self.closing or closed or self.unfinished or (self.unjudged and self.cases):
            return ExitCode.FINDINGS
        seen = any(status.state is State.SEEN for status in self.known)
        return ExitCode.CLEAN if self.cases or seen else ExitCode.NOTHING_RAN

    @property
    def verdict(self) -> str:
        """How it ended, in one line."""
        if self.lost:
            return f"device lost, nothing counts: {self.lost}"
        if self.ended:
            return f"ended early: {self.ended}"
        parts = [counted(len(self.closing), "finding")] if self.closing else []
        closed = [status for status in self.known if status.state.closes]
        parts += [f"{counted(len(closed), 'known issue')} to look at"] if closed else []
        parts += [f"{counted(len(self.unfinished), 'job')} for which there was no time"] if self.unfinished else []
        unjudged = self.unjudged if self.cases else []
        parts += [f"{counted(len(unjudged), 'implementation')} of which no case could be judged"] if unjudged else []
        if parts:
            return "closed: " + ", ".join(parts)
        return "open" if self.code is ExitCode.CLEAN else "closed: nothing ran"

    def by_implementation(self) -> Mapping[tuple[str, str], list[Outcome]]:
        """Outcomes of all parts by component and implementation, in the order of the plan."""
        groups: dict[tuple[str, str], list[Outcome]] = {job.subject.names: [] for job in self.plan.jobs}
        for _, outcome in self.outcomes:
            groups[outcome.job.subject.names].append(outcome)
        return groups
