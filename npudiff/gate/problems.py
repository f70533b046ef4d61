"""What a gate has to tell, in one form for all who are told: JUnit, SARIF, annotations, a summary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from npudiff.gate.result import GateResult, KnownStatus, ReportedFinding, State
from npudiff.gate.source_location import SourceLocation, source_location_of
from npudiff.model.implementation import Implementation
from npudiff.show.report import finding_lines
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
    """Whether it closes the gate, is to be looked at, or is only said."""
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


def problems_of(result: GateResult, root: Path) -> list[Problem]:
    """Return what a gate has to tell, the worst first.

    Parameters
    ----------
    result : GateResult
        What it has seen.
    root : pathlib.Path
        Folder that places are relative to: that of the repository.
    """
    items = {job.subject.names: job.subject.implementation for job in result.plan.jobs}
    told = [_of_finding(one, items, root) for one in result.findings]
    known = [_of_known(status, result, items, root) for status in result.known]
    unfinished = [_unfinished(name) for name in result.unfinished]
    ends = {"device-lost": result.lost, "ended-early": result.ended}
    ended = [
        Problem(Level.ERROR, rule, f"{rule.replace('-', ' ')}: {printable(text)}", fingerprint=_digest(rule))
        for rule, text in ends.items()
        if text
    ]
    return sorted([*ended, *told, *known, *unfinished], key=lambda one: list(Level).index(one.level))


def _of_finding(told: ReportedFinding, items: Mapping[tuple[str, str], Implementation], root: Path) -> Problem:
    finding = told.finding
    name = f"{finding.component}.{finding.implementation}"
    case = finding.detail.get("line", "")
    title = f"{name}: {finding.property_name}: {finding.verdict}" + (f" on {case}" if case else "")
    if finding.detail.get("flaky"):
        title += " (comes and goes)"
    item = items.get((finding.component, finding.implementation))
    lines = [(label, printable(text)) for label, text in finding_lines(finding, told.folder)]
    return Problem(
        level=Level.WARNING if told.warns else Level.ERROR,
        rule=f"{finding.component}/{finding.property_name}",
        title=printable(title),
        lines=(*lines, ("part", told.part.value)),
        place=None if item is None else source_location_of(item, root),
        fingerprint=_digest(name, finding.property_name, finding.verdict, finding.target),
        job=finding.job,
    )


def _of_known(
    status: KnownStatus, result: GateResult, items: Mapping[tuple[str, str], Implementation], root: Path
) -> Problem:
    issue = status.issue
    item = items.get((issue.component, issue.implementation))
    place = source_location_of(item, root) if item is not None and status.state is State.SEEN else None
    reason = [("reason", printable(issue.reason))] if issue.reason else []
    return Problem(
        level=Level.ERROR if status.state.closes else Level.NOTE,
        rule="known-issue" if status.state.closes else f"{issue.component}/{issue.prop or 'any property'}",
        title=printable(f"known issue {status.line}"),
        lines=(("link", issue.link), ("expires", str(issue.expires)), *reason),
        place=place or _place_in(result.known_file, issue.line, root),
        fingerprint=_digest("known", issue.name, issue.link, status.state.name if status.state.closes else ""),
        link=issue.link if status.state is State.SEEN else "",
        job=f"{issue.component}.{issue.implementation}.{issue.prop}" if issue.prop else "",
    )


def _place_in(file: Path | None, line: int, root: Path) -> SourceLocation | None:
    if file is None or not file.resolve().is_relative_to(root.resolve()):
        return None
    return SourceLocation(file.resolve().relative_to(root.resolve()).as_posix(), line)


def _unfinished(name: str) -> Problem:
    title = f"{name} was not run to its end: there was no time; give the gate more, or name fewer components"
    return Problem(Level.ERROR, "unfinished", printable(title), fingerprint=_digest("unfinished", name), job=name)


def _digest(*parts: str) -> str:
    return hashlib.sha256(printable("|".join(parts)).encode()).hexdigest()[:32]
