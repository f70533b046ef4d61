"""What a gate has to tell: its findings, what became of known issues, and what ended it early."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from npudiff.gate.result import GateResult, KnownStatus, State
from npudiff.model.implementation import Implementation
from npudiff.show.problems import Level, Problem, fingerprint_of, problem_of_finding
from npudiff.show.source_location import SourceLocation, source_location_of
from npudiff.text import printable


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
    told = [
        problem_of_finding(one, items.get(one.finding.subject), root, Level.WARNING if one.warns else Level.ERROR)
        for one in result.findings
    ]
    known = [_of_known(status, result, items, root) for status in result.known]
    unfinished = [_unfinished(name) for name in result.unfinished]
    unjudged = [_unjudged(names, why) for names, why in (result.unjudged if result.cases else ())]
    ends = {"device-lost": result.lost, "ended-early": result.ended}
    ended = [
        Problem(Level.ERROR, rule, f"{rule.replace('-', ' ')}: {printable(text)}", fingerprint=fingerprint_of(rule))
        for rule, text in ends.items()
        if text
    ]
    return sorted([*ended, *told, *known, *unfinished, *unjudged], key=lambda one: list(Level).index(one.level))


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
        fingerprint=fingerprint_of("known", issue.name, issue.link, status.state.name if status.state.closes else ""),
        link=issue.link if status.state is State.SEEN else "",
        job=f"{issue.component}.{issue.implementation}.{issue.prop}" if issue.prop else "",
    )


def _place_in(file: Path | None, line: int, root: Path) -> SourceLocation | None:
    if file is None or not file.resolve().is_relative_to(root.resolve()):
        return None
    return SourceLocation(file.resolve().relative_to(root.resolve()).as_posix(), line)


def _unfinished(name: str) -> Problem:
    title = f"{name} was not run to its end: there was no time; give the gate more, or name fewer components"
    return Problem(
        Level.ERROR, "unfinished", printable(title), fingerprint=fingerprint_of("unfinished", name), job=name
    )


def _unjudged(names: tuple[str, str], why: str) -> Problem:
    name = ".".join(names)
    title = f"no case of {name} could be judged: {why}; a known issue with the verdict 'not judged' accepts that"
    return Problem(Level.ERROR, "not-judged", printable(title), fingerprint=fingerprint_of("not-judged", name))
