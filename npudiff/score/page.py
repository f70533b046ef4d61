"""The page of a score: what each method finds, over cases, and every mutant in a table."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from npudiff.score.methods import METHODS
from npudiff.score.summary import by_mutant, scores, share_found
from npudiff.score.trials import Trial
from npudiff.show.rendering import SafeHtml, render

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT, _TOP = 860, 380, 56, 44, 210, 16
_FONT = 12
_COLOURS = ("#0b6e4f", "#b23a48", "#c97b18", "#7a6c00", "#37508f", "#7b3f98", "#1f7a8c", "#5c5c5c")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 3", "10 4", "3 3 1 3")


class Cell(NamedTuple):
    """The share of a method's trials that found a mutant."""

    text: str
    kind: str
    """Its CSS class."""


def page(trials: Sequence[Trial], about: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    trials : sequence of Trial
        All trials of a run.
    about : mapping
        Names and values that describe the run.
    """
    methods = {method: mutants for method, mutants in by_mutant(trials).items() if mutants}
    smallest = methods.get(METHODS[0].name, {})
    rows = [
        (mutant, [_cell(mutants.get(mutant, ())) for mutants in methods.values()], _smallest(smallest.get(mutant, ())))
        for mutant in next(iter(methods.values()), {})
    ]
    return render(
        "score.html",
        title="How many planted bugs are found",
        about=about,
        scores=scores(trials),
        summaries={method.name: method.summary for method in METHODS},
        plot=_plot({method: curve(mutants) for method, mutants in methods.items()}),
        methods=list(methods),
        rows=rows,
    )


def curve(mutants: Mapping[str, Sequence[Trial]]) -> list[tuple[int, float]]:
    """Return (cases, share of mutants found by then): a mutant counts where half of its trials have found it."""
    steps = sorted(
        found[(len(group) - 1) // 2]
        for group in mutants.values()
        if len(found := sorted(trial.cases for trial in group if trial.found)) > (len(group) - 1) // 2
    )
    return [(cases, (number + 1) / len(mutants)) for number, cases in enumerate(steps)]


def _cell(trials: Sequence[Trial]) -> Cell:
    if not trials:
        return Cell("-", "none")
    share = share_found(trials)
    cases = sorted(trial.cases for trial in trials if trial.found)
    after = f" after {cases[len(cases) // 2]}" if cases else ""
    return Cell(f"{share:.0%}{after}", "" if share == 1 else "no" if share == 0 else "few")


def _smallest(trials: Sequence[Trial]) -> str:
    """Return the smallest case that was found, without its seed."""
    sized = [trial for trial in trials if trial.size is not None]
    return min(sized, key=lambda trial: trial.size or 0).case.split(" · seed ")[0] if sized else ""


def _plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> SafeHtml:
    most = max((points[-1][0] for points in curves.values() if points), default=1)
    decades = max(1, math.ceil(math.log10(max(most, 2))))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(cases: float) -> float:
        return _LEFT + (right - _LEFT) * math.log10(max(cases, 1)) / decades

    def y(share: float) -> float:
        return _TOP + (bottom - _TOP) * (1 - share)

    about = 'role="img" aria-label="share of mutants found over cases"'
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH / _FONT:.1f}em" {about}>']
    for percent in range(0, 101, 20):
        height = y(percent / 100)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{percent} %</text>')
    parts += [
        f'<text x="{x(10**decade):.1f}" y="{bottom + 20}" text-anchor="middle">{10**decade}</text>'
        for decade in range(decades + 1)
    ]
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">cases</text>')
    for number, (method, points) in enumerate(curves.items()):
        parts.append(_line(number, method, points, x, y))
    return SafeHtml("".join((*parts, "</svg>")))


_Scale = Callable[[float], float]


def _line(number: int, method: str, points: Sequence[tuple[int, float]], x: _Scale, y: _Scale) -> str:
    """Return a method's staircase and its name beside the plot; dashes tell methods apart without colours."""
    right = _WIDTH - _RIGHT
    steps = "".join(f"H{x(cases):.1f}V{y(share):.1f}" for cases, share in points)
    colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
    label = 24 + 20 * number
    text = f"{html.escape(method)} {points[-1][1] if points else 0:.0%}"
    return (
        f'<path d="M{_LEFT},{y(0):.1f}{steps}H{right}" fill="none" {stroke}/>'
        f'<line x1="{right + 12}" x2="{right + 40}" y1="{label}" y2="{label}" {stroke}/>'
        f'<text x="{right + 46}" y="{label + 4}">{text}</text>'
    )
