"""The findings: by implementation, those with one symptom together, the first in full and the others as rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from npudiff.judge.properties import EQUIVALENCE
from npudiff.show.run_page.card import PICTURES_OF_ONE, card, finding_list
from npudiff.show.run_page.state import LatestFinding, State, Subject, findings_of
from npudiff.show.run_page.words import anchors, counted, folded, name_of, number

WITH_PICTURES = 24
"""Findings whose pictures are on the page; each has a page of its own, with all of them."""

IN_FULL = 100
"""Findings that are on the page with all their words."""

OPEN = 12
"""Implementations that are unfolded."""


@dataclass(frozen=True)
class Symptom:
    """Findings of one implementation that say the same."""

    findings: tuple[LatestFinding, ...]

    @property
    def head(self) -> LatestFinding:
        """The one that is shown."""
        return self.findings[0]


@dataclass(frozen=True)
class Accused:
    """An implementation with findings: its symptoms, and relations that fail because values are wrong already."""

    subject: Subject
    symptoms: tuple[Symptom, ...]
    secondary: tuple[LatestFinding, ...]

    @property
    def count(self) -> int:
        """All its findings."""
        return sum(len(symptom.findings) for symptom in self.symptoms) + len(self.secondary)


def accused(state: State) -> list[Accused]:
    """Group findings by implementation, in the order in which they were found."""
    groups: dict[Subject, list[LatestFinding]] = {}
    for found in state.findings:
        groups.setdefault((found.finding.component, found.finding.implementation), []).append(found)
    return [_accused(subject, findings) for subject, findings in groups.items()]


def _accused(subject: Subject, findings: Sequence[LatestFinding]) -> Accused:
    wrong = {found.place for found in findings if found.finding.property_name == EQUIVALENCE.name}
    symptoms: dict[tuple[object, ...], list[LatestFinding]] = {}
    secondary = []
    for found in sorted(findings, key=lambda one: one.finding.property_name != EQUIVALENCE.name):
        first = found.finding.property_name == EQUIVALENCE.name or found.place not in wrong
        key = (found.finding.verdict, found.finding.symptom)
        if first or key in symptoms:
            symptoms.setdefault(key, []).append(found)
        else:
            secondary.append(found)
    return Accused(subject, tuple(Symptom(tuple(one)) for one in symptoms.values()), tuple(secondary))


def in_full(groups: Sequence[Accused]) -> dict[tuple[Subject, int], int]:
    """Return which symptoms are shown in full, and their rank: the first of each implementation, then the second."""
    rounds = itertools.zip_longest(*([(one.subject, place) for place in range(len(one.symptoms))] for one in groups))
    chosen = (key for one in rounds for key in one if key is not None)
    return {key: rank for rank, key in enumerate(itertools.islice(chosen, IN_FULL))}


def findings_part(state: State, page: Path) -> str:
    """Return the part of the page."""
    return "".join(_part(state, page))


def _part(state: State, page: Path) -> Iterator[str]:
    groups = accused(state)
    yield "<h2 id=findings>Findings</h2>"
    if not groups:
        unnamed = findings_of(state.jobs)
        gone = f"<p class=no>{counted(unnamed, 'finding')}, of which the record has the number alone.</p>"
        yield gone if unnamed else "<p class=yes>No findings.</p>"
        return
    ranks, names = in_full(groups), anchors(state)
    symptoms = sum(len(one.symptoms) for one in groups)
    said = f"{counted(len(state.findings), 'finding')} of {counted(len(groups), 'implementation')}"
    yield f"<p>{said}, with {counted(symptoms, 'symptom')}."
    if symptoms > len(ranks):
        yield f" {number(len(ranks))} symptoms are shown in full, the others as a line each."
    yield "</p>"
    for place, group in enumerate(groups):
        opened = " open" if place < OPEN else ""
        count = counted(group.count, "finding")
        yield (
            f"<details class=implementation{opened}><summary><h3>{name_of(*group.subject)}</h3> "
            f"<span class=no>{count}</span></summary><div class=inside id={names[group.subject]}>"
        )
        yield from _group(group, ranks, page)
        yield "</div></details>"


def _group(group: Accused, ranks: dict[tuple[Subject, int], int], page: Path) -> Iterator[str]:
    rest: list[LatestFinding] = []
    for place, symptom in enumerate(group.symptoms):
        rank = ranks.get((group.subject, place))
        if rank is None:
            rest += symptom.findings
        else:
            first = 1 + rank * PICTURES_OF_ONE if rank < WITH_PICTURES else 0
            yield card(symptom.head, symptom.findings[1:], page, first)
    if rest:
        yield folded(counted(len(rest), "more finding"), finding_list(rest, page))
    if group.secondary:
        said = f"{counted(len(group.secondary), 'finding')} of relations, which say little where values are wrong"
        yield folded(said, finding_list(group.secondary, page))
