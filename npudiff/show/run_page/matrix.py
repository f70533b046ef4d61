"""The matrix: implementations in rows, targets in columns, and in each cell what is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from npudiff.show.run_page.state import LatestResult, State, Subject, TargetColumn, findings_of
from npudiff.show.run_page.words import anchors, counted, left_out, name_of, number, words

MOST_ROWS, MOST_COLUMNS = 1_500, 12


def matrix(state: State) -> str:
    """Return the part of the page."""
    return "".join(_matrix(state))


def _matrix(state: State) -> Iterator[str]:
    yield "<h2 id=matrix>What was checked where</h2>"
    if not state.by_subject:
        yield "<p class=none>No implementation was checked.</p>"
        return
    places, names = state.places[:MOST_COLUMNS], anchors(state)
    rows = list(state.by_subject.items())[:MOST_ROWS]
    yield '<div class="wide tall" role=region aria-label="What was checked where" tabindex=0><table class=matrix>'
    yield "<caption class=hidden>Results by implementation and target</caption><thead><tr>"
    yield "<th scope=col>implementation</th>"
    for place in places:
        yield f"<th scope=col>{words(place.target, 40)}<br><small>CANN {words(place.cann, 40)}</small></th>"
    yield "</tr></thead>"
    for component, members in groupby(rows, key=lambda row: row[0][0]):
        yield f"<tbody><tr><th scope=rowgroup colspan={len(places) + 1} class=component>{words(component)}</th></tr>"
        for subject, cells in members:
            yield f"<tr><th scope=row>{name_of(subject[1])}</th>"
            yield from _cells(subject, cells, places, names)
            yield "</tr>"
        yield "</tbody>"
    yield "</table></div>"
    yield left_out(len(state.by_subject), len(rows), "implementations")
    yield left_out(len(state.places), len(places), "targets")


def _cells(
    subject: Subject,
    cells: Mapping[TargetColumn, Sequence[LatestResult]],
    places: Sequence[TargetColumn],
    names: Mapping[Subject, str],
) -> Iterator[str]:
    for place in places:
        said, kind, more = cell(cells.get(place, ()))
        shown = f"<a href=#{names[subject]}>{said}</a>" if kind == "no" and subject in names else said
        yield f'<td class="{kind}">{shown}{f"<br><small>{more}</small>" if more else ""}</td>'


def cell(jobs: Sequence[LatestResult]) -> tuple[str, str, str]:
    """Return what a cell says of jobs, which class it has, and what it says in small."""
    findings, cases = findings_of(jobs), sum(now.job.cases for now in jobs)
    narrowed = bool(jobs) and all(now.kept.record.scope for now in jobs if now.job.cases)
    without = len({name for now in jobs for name in now.job.without})
    known = counted(without, "known issue")
    more = counted(cases, "case") + (", narrowed" if narrowed else "") + (f", without {known}" if without else "")
    missing = sum(now.job.verdict == "not run" and not now.job.without for now in jobs)
    more += f", {number(missing)} not run" if missing else ""
    if findings:
        return counted(findings, "finding"), "no", more
    if cases:
        return ("ok", "yes", more) if not missing else ("ok so far", "few", more)
    if without and not missing:
        return known, "few", "nothing else was run"
    if missing or not jobs:
        return "not run", "none", ""
    return "not applicable", "none", ""
