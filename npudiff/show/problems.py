"""What a run has to tell, in one form for all who are told: JUnit, SARIF, annotations, a summary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from npudiff.findings.log import LoggedFinding
from npudiff.model.implementation import Implementation
from npudiff.run.plan import Plan
from npudiff.show.finding import finding_lines
from npudiff.show.source_location import SourceLocation, source_location_of
from npudiff.text import printable


class Level(Enum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Problem:
    """Something to tell."""

    level: Level
    """Whether it fails the run, is to be looked at, or is only said."""
    rule: str
    """What kind of thing it is: ``component/property``, ``known-issue`` or ``unfinished``."""
    title: str
    """One line."""
    lines: tuple[tuple[str, str], ...] = ()
    """The rest, labelled."""
    place: SourceLocation | None = None
    """Where to show it."""
    fingerprint: str = ""
    """The same for the same problem in another run, whichever case shows it."""
    link: str = ""
    """Where it is tracked, for known issues."""
    job: str = ""
    """Name of the job; empty where it is of none."""

    @property
    def text(self) -> str:
        """All lines as text."""
        return "\n".join(f"{label:10} {text}" for label, text in self.lines)


def problems_of_findings(findings: Sequence[LoggedFinding], plan: Plan, root: Path) -> list[Problem]:
    """Return the findings of a run as problems.

    Parameters
    ----------
    findings : sequence of LoggedFinding
        What was found.
    plan : Plan
        What was run.
    root : pathlib.Path
        Folder that places are relative to: that of the repository.
    """
    items = {job.subject.names: job.subject.implementation for job in plan.jobs}
    return [problem_of_finding(one, items.get(one.finding.subject), root) for one in findings]


def problem_of_finding(
    found: LoggedFinding, item: Implementation | None, root: Path, level: Level = Level.ERROR
) -> Problem:
    """Return a finding as a problem, shown where its implementation is written."""
    finding = found.finding
    name = ".".join(finding.subject)
    case = finding.detail.get("line", "")
    title = f"{name}: {finding.property_name}: {finding.verdict}" + (f" on {case}" if case else "")
    if finding.detail.get("flaky"):
        title += " (comes and goes)"
    said = finding_lines(finding, found.folder, unwritten=found.unwritten)
    lines = [(label, printable(text)) for label, text in said]
    return Problem(
        level=level,
        rule=f"{finding.component}/{finding.property_name}",
        title=printable(title),
        lines=(*lines, *([("part", found.stage)] if found.stage else [])),
        place=None if item is None else source_location_of(item, root),
        fingerprint=fingerprint_of(name, finding.property_name, finding.verdict, finding.target),
        job=finding.job,
    )


def fingerprint_of(*parts: str) -> str:
    """Return a digest that is the same for the same problem of another run."""
    return hashlib.sha256(printable("|".join(parts)).encode()).hexdigest()[:32]
