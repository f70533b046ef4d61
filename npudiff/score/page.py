"""The score as one page that needs no network: what each method finds, over cases, and every mutant in a table."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from npudiff.score.methods import METHODS
from npudiff.score.summary import MethodScore, by_mutant, scores, share_found
from npudiff.score.trials import Trial
from npudiff.show.html_page import page_of

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT, _TOP = 860, 380, 56, 44, 210, 16
_COLOURS = ("#0b6e4f", "#b23a48", "#c97b18", "#7a6c00", "#37508f", "#7b3f98", "#1f7a8c", "#5c5c5c")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 3", "10 4", "3 3 1 3")


def page(trials: Sequence[Trial], about: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    trials : sequence of Trial
        All of a run.
    about : mapping
        What the run was, in a few words each.
    """
    told = " · ".join(f"{html.escape(name)} {html.escape(str(value))}" for name, value in about.items())
    body = (
        f"<p>{told}</p>{''.join(_methods(scores(trials)))}"
        "<h2>Found over cases</h2><p>Share of mutants that half of a method's trials have found, after so many cases."
        f"</p>{_plot(trials)}<h2>Every mutant</h2><div class=wide>{''.join(_mutants(trials))}</div>"
    )
    return page_of("How many planted bugs are found", body)


def _methods(rows: Sequence[MethodScore]) -> Iterator[str]:
    names = ("method", "mutants", "found", "from 9 of 10 seeds", "false alarms", "median cases", "median seconds")
    yield "<table><thead><tr>"
    yield from (f"<th scope=col>{name}" for name in names)
    yield "</tr></thead><tbody>"
    about = {method.name: method.summary for method in METHODS}
    for row in rows:
        cases = "-" if row.cases is None else f"{row.cases:.0f}"
        seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
        yield f"<tr><td><b>{html.escape(row.method)}</b><br>{html.escape(about.get(row.method, ''))}"
        yield f"<td>{row.mutants}<td>{row.found}<td>{row.reliable} ({row.reliable / row.mutants:.0%})"
        yield f"<td>{row.accused} of {row.right}<td>{cases}<td>{seconds}</tr>"
    yield "</tbody></table>"


def curve(mutants: Mapping[str, Sequence[Trial]]) -> list[tuple[int, float]]:
    """Return (cases, share of mutants found by then): a mutant counts where half of its trials have found it."""
    steps = sorted(
        found[(len(group) - 1) // 2]
        for group in mutants.values()
        if len(found := sorted(trial.cases for trial in group if trial.found)) > (len(group) - 1) // 2
    )
    return [(cases, (number + 1) / len(mutants)) for number, cases in enumerate(steps)]


def _plot(trials: Sequence[Trial]) -> str:
    curves = {method: curve(mutants) for method, mutants in by_mutant(trials).items() if mutants}
    most = max((points[-1][0] for points in curves.values() if points), default=1)
    decades = max(1, math.ceil(math.log10(max(most, 2))))
    inner = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(cases: float) -> float:
        return _LEFT + inner[0] * math.log10(max(cases, 1)) / decades

    def y(share: float) -> float:
        return _TOP + inner[1] * (1 - share)

    right = _WIDTH - _RIGHT
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="share of mutants found over cases">']
    for tenths in range(0, 11, 2):
        height = y(tenths / 10)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tenths * 10} %</text>')
    parts += [
        f'<text x="{x(10**decade):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{10**decade}</text>'
        for decade in range(decades + 1)
    ]
    parts.append(f'<text x="{_LEFT + inner[0] / 2}" y="{_HEIGHT - 6}" text-anchor="middle">cases</text>')
    for number, (method, points) in enumerate(curves.items()):
        parts.append(_line(number, method, points, x, y))
    return "".join((*parts, "</svg>"))


def _line(number: int, method: str, points: Sequence[tuple[int, float]], x: Any, y: Any) -> str:  # noqa: ANN401
    """A staircase to the right edge, and its name beside it; dashes tell methods apart without colours."""
    colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    path, height = [f"M{_LEFT},{y(0):.1f}"], 0.0
    for cases, share in points:
        path.append(f"H{x(cases):.1f}V{y(share):.1f}")
        height = share
    path.append(f"H{_WIDTH - _RIGHT}")
    label = 24 + 20 * number
    return (
        f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<line x1="{_WIDTH - _RIGHT + 12}" x2="{_WIDTH - _RIGHT + 40}" y1="{label}" y2="{label}" stroke="{colour}" '
        f'stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<text x="{_WIDTH - _RIGHT + 46}" y="{label + 4}">{html.escape(method)} {height:.0%}</text>'
    )


def _mutants(trials: Sequence[Trial]) -> Iterator[str]:
    methods = {method: mutants for method, mutants in by_mutant(trials).items() if mutants}
    yield "<table><thead><tr><th scope=col>mutant"
    yield from (f"<th scope=col>{html.escape(method)}" for method in methods)
    yield "<th scope=col>smallest case</tr></thead><tbody>"
    for mutant in next(iter(methods.values()), {}):
        yield f"<tr><td>{html.escape(mutant)}"
        for mutants in methods.values():
            yield _cell(mutants.get(mutant, ()))
        smallest = min(
            (trial for trial in methods.get(METHODS[0].name, {}).get(mutant, ()) if trial.size is not None),
            key=lambda trial: trial.size or 0,
            default=None,
        )
        yield f"<td>{html.escape(smallest.case.split(' · seed ')[0]) if smallest else ''}</tr>"
    yield "</tbody></table>"


def _cell(trials: Sequence[Trial]) -> str:
    if not trials:
        return "<td class=none>-"
    share = share_found(trials)
    style = "" if share == 1 else " class=no" if share == 0 else " class=few"
    cases = sorted(trial.cases for trial in trials if trial.found)
    after = f" after {cases[len(cases) // 2]}" if cases else ""
    return f"<td{style}>{share:.0%}{after}"
