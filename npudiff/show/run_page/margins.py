"""Margins: the largest error over bound of each implementation in the cases that hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from npudiff.show.run_page.state import LatestResult, State, Subject

LEAST = 1e-3
"""Where the logarithmic scale begins; it ends at 1, the bound."""


@dataclass(frozen=True)
class Margin:
    """The largest error over bound of an implementation on a target."""

    subject: Subject
    where: str
    """Target and CANN."""
    worst: float
    case: str

    @property
    def length(self) -> float:
        """Length of its bar, in percent of the scale."""
        return length(self.worst)


@dataclass(frozen=True)
class Margins:
    """The margins of all implementations."""

    measured: Sequence[Margin]
    """The narrowest first."""
    exact: Sequence[str]
    """Implementations of which only equality was asked."""


def margins_of(state: State) -> Margins:
    """Return the margins of the implementations that held in some case."""
    measured: list[Margin] = []
    exact: dict[str, None] = {}
    for subject, cells in state.by_subject.items():
        for column, results in cells.items():
            held = [result for result in results if result.job.held]
            if held and all(result.job.exact for result in held):
                exact[".".join(subject)] = None
            elif held:
                measured.append(_margin(subject, column.text, held))
    return Margins(sorted(measured, key=lambda margin: margin.worst, reverse=True), list(exact))


def _margin(subject: Subject, where: str, held: Sequence[LatestResult]) -> Margin:
    job = max((result.job for result in held), key=lambda job: job.worst)
    return Margin(subject, where, job.worst, job.worst_case)


def length(worst: float) -> float:
    """Return the length of a bar, in percent of the scale."""
    return 100 * min(1.0, max(0.0, 1 - math.log10(max(worst, LEAST)) / math.log10(LEAST)))
