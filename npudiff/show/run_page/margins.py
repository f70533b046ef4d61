"""Margins: how near to its bound each implementation came in the cases that hold, as bars on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from npudiff.show.run_page.state import LatestResult, State, Subject, TargetColumn
from npudiff.show.run_page.words import counted, few_and_rest, folded, left_out, name_of, phone, words

LEAST = 1e-3
"""Where the scale begins; it ends at 1, the bound."""

SHOWN, MOST = 20, 1_000

_TICKS = "<span class=ticks><span>0.001</span><span>0.01</span><span>0.1</span><span>1</span></span>"


@dataclass(frozen=True)
class Margin:
    """The largest error over bound of an implementation at a place; None where only equality was asked for."""

    subject: Subject
    place: TargetColumn
    worst: float | None
    case: str
    property_name: str


def margins_of(state: State) -> list[Margin]:
    """Return the margin of each implementation that held in some case, the narrowest first."""
    margins = []
    for subject, cells in state.by_subject.items():
        for place, jobs in cells.items():
            margin = _margin(subject, place, [now for now in jobs if now.job.held])
            margins += [margin] if margin is not None else []
    return sorted(margins, key=lambda margin: -1.0 if margin.worst is None else margin.worst, reverse=True)


def _margin(subject: Subject, place: TargetColumn, held: Sequence[LatestResult]) -> Margin | None:
    if not held:
        return None
    if all(now.job.exact for now in held):
        return Margin(subject, place, None, "", "")
    job = max((now.job for now in held), key=lambda job: job.worst)
    return Margin(subject, place, job.worst, job.worst_case, job.property_name)


def length(worst: float) -> float:
    """Return how long the bar is, in percent of the scale."""
    return 100 * min(1.0, max(0.0, 1 - math.log10(max(worst, LEAST)) / math.log10(LEAST)))


def margins(state: State) -> str:
    """Return the part of the page."""
    return "".join(_part(state))


def _part(state: State) -> Iterator[str]:
    yield "<h2 id=margins>Margins</h2>"
    found = margins_of(state)
    if not found:
        yield "<p class=none>No case held.</p>"
        return
    measured = [margin for margin in found if margin.worst is not None]
    yield (
        "<p>The largest error of any case that holds, as a part of what is allowed: 1 is the bound itself."
        " The scale is logarithmic, from 0.001 to 1.</p>"
    )
    if measured:
        columns = ("implementation", "where", "worst", _TICKS, "at the case")
        made = {"caption": "Largest error over bound", "columns": columns, "kind": "words margins"}
        yield from few_and_rest([_row(margin) for margin in measured[:MOST]], SHOWN, made)
        yield left_out(len(measured), MOST, "margins")
    exact = len(found) - len(measured)
    if exact:
        names = dict.fromkeys(".".join(margin.subject) for margin in found if margin.worst is None)
        listed = ", ".join(words(name, 80) for name in list(names)[:MOST])
        said = f"{counted(len(names), 'implementation')} of which only equality was asked"
        yield folded(said, f"<p>{listed}</p>")


def _row(margin: Margin) -> str:
    worst = margin.worst or 0.0
    bar = f'<span class=bar style="width:{length(worst):.1f}%"></span>'
    return (
        f"<tr><th scope=row>{name_of(*margin.subject)}</th><td>{words(margin.place.text)}</td>"
        f"<td>{worst:.3g}{phone('of the bound')}</td><td class=scale>{bar}</td><td>{words(margin.case)}</td></tr>"
    )
