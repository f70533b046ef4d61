"""Regions: where the cases of each implementation were, and why draws were not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from npudiff.show.run_page.state import LatestResult, State

MOST_IMPLEMENTATIONS, MOST_REGIONS, MOST_REASONS = 1_000, 60, 8


@dataclass(frozen=True)
class RegionRow:
    """The cases of an implementation."""

    implementation: str
    cases: int
    shares: Sequence[tuple[str, float]]
    """Regions, and the share of the cases in each."""
    not_applicable: int
    """Draws that were not run."""
    reasons: Sequence[tuple[str, int]]
    """Why, and how often."""


@dataclass(frozen=True)
class Regions:
    """The implementations that are shown, by component."""

    components: Sequence[tuple[str, Sequence[RegionRow]]]
    left_out: int


def regions_of(state: State) -> Regions:
    """Return where the cases were."""
    shown = list(state.by_subject.items())[:MOST_IMPLEMENTATIONS]
    components = [
        (
            component,
            [_row(name, [one for results in cells.values() for one in results]) for (_, name), cells in members],
        )
        for component, members in groupby(shown, key=lambda item: item[0][0])
    ]
    return Regions(components, len(state.by_subject) - len(shown))


def _row(implementation: str, results: Iterable[LatestResult]) -> RegionRow:
    features: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    cases = not_applicable = 0
    for result in results:
        features.update({count.name: count.number for count in result.job.features})
        reasons.update({count.name: count.number for count in result.job.reasons})
        cases += result.job.cases
        not_applicable += result.job.not_applicable
    shares = [(name, count / max(1, cases)) for name, count in features.most_common(MOST_REGIONS)]
    return RegionRow(implementation, cases, shares, not_applicable, reasons.most_common(MOST_REASONS))
