"""The findings of a page: by implementation, and by symptom; the first of each symptom with words and pictures."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from npudiff.errors import UsageError
from npudiff.files.writing import FINDINGS
from npudiff.findings.finding import read_finding
from npudiff.judge.judge import EQUIVALENCE
from npudiff.show.finding import PAGE_FILE, finding_lines, is_command
from npudiff.show.picture import coarser, drawn, read_pictures
from npudiff.show.rendering import SafeHtml, clip
from npudiff.show.run_page.record import FindingRecord
from npudiff.show.run_page.state import LatestFinding, State, Subject

IN_FULL = 100
"""Findings that are on the page with all their words."""

WITH_PICTURES = 24
"""Findings whose picture is on the page; each has a page of its own, with all of them."""

MOST_LINES, LONGEST_LINE = 40, 1_200

MOST_CELLS = 48
"""Rows and columns of a picture; the finding's own page has the finer one."""


@dataclass(frozen=True)
class FindingRow:
    """A finding as a row of a table."""

    record: FindingRecord
    where: str
    """Target and CANN."""
    address: str
    """The finding's own page, or empty if there is none."""


@dataclass(frozen=True)
class FindingDetail:
    """A finding with words and picture, and those with the same symptom as rows."""

    row: FindingRow
    lines: Sequence[tuple[str, str, bool]]
    """Label, text, and whether the text is a command."""
    problem: str
    """Why there are no lines."""
    picture: tuple[str, SafeHtml] | None
    """Caption and drawing."""
    same_symptom: Sequence[FindingRow]


@dataclass(frozen=True)
class ImplementationFindings:
    """The findings of an implementation."""

    subject: Subject
    symptoms: int
    """Different symptoms."""
    details: Sequence[FindingDetail]
    """The first finding of each symptom that is shown in full."""
    others: Sequence[FindingRow]
    """Findings of the other symptoms."""
    secondary: Sequence[FindingRow]
    """Relations that fail where values are wrong already."""

    @property
    def count(self) -> int:
        """Number of its findings."""
        return sum(1 + len(detail.same_symptom) for detail in self.details) + len(self.others) + len(self.secondary)


class PageLinks:
    """Links of a page to the pages of findings.

    Parameters
    ----------
    page : pathlib.Path
        File of the page.
    """

    def __init__(self, page: Path) -> None:
        self._folder = page.absolute().parent
        self._relative: dict[Path, str] = {}

    def rows(self, findings: Sequence[LatestFinding]) -> list[FindingRow]:
        """Return findings as rows."""
        return [FindingRow(found.finding, found.column.text, self._address(found)) for found in findings]

    def _address(self, found: LatestFinding) -> str:
        folder = found.run.finding_folder(found.finding.folder)
        file = None if folder is None else folder / PAGE_FILE
        if file is None or file.is_symlink() or not file.is_file():
            return ""
        root = found.run.root
        if root not in self._relative:
            relative = os.path.relpath((root / FINDINGS).absolute(), self._folder)
            self._relative[root] = quote(os.fsencode(Path(relative).as_posix()))
        return f"{self._relative[root]}/{found.finding.folder}/{PAGE_FILE}"


def findings_by_implementation(state: State, links: PageLinks) -> list[ImplementationFindings]:
    """Return the findings of each implementation, in the order in which they were found."""
    groups: dict[Subject, list[LatestFinding]] = {}
    for found in state.findings:
        groups.setdefault((found.finding.component, found.finding.implementation), []).append(found)
    sorted_groups = {subject: _by_symptom(findings) for subject, findings in groups.items()}
    ranks = _ranks({subject: len(symptoms) for subject, (symptoms, _) in sorted_groups.items()})
    implementations = []
    for subject, (symptoms, secondary) in sorted_groups.items():
        details: list[FindingDetail] = []
        others: list[LatestFinding] = []
        for number, findings in enumerate(symptoms):
            rank = ranks.get((subject, number))
            if rank is None:
                others += findings
            else:
                details.append(_detail(findings, links, rank))
        implementations.append(
            ImplementationFindings(subject, len(symptoms), details, links.rows(others), links.rows(secondary))
        )
    return implementations


def _by_symptom(findings: Sequence[LatestFinding]) -> tuple[list[list[LatestFinding]], list[LatestFinding]]:
    """Return the findings of each symptom, and relations that fail on targets where values are wrong already."""
    wrong = {found.column for found in findings if found.finding.property_name == EQUIVALENCE.name}
    symptoms: dict[tuple[str, str], list[LatestFinding]] = {}
    secondary = []
    for found in sorted(findings, key=lambda found: found.finding.property_name != EQUIVALENCE.name):
        primary = found.finding.property_name == EQUIVALENCE.name or found.column not in wrong
        key = (found.finding.verdict, found.finding.symptom)
        if primary or key in symptoms:
            symptoms.setdefault(key, []).append(found)
        else:
            secondary.append(found)
    return list(symptoms.values()), secondary


def _ranks(symptoms: Mapping[Subject, int]) -> dict[tuple[Subject, int], int]:
    """Return the symptoms that are shown in full, and their rank: the first of each implementation, then the second."""
    rounds = itertools.zip_longest(*([(subject, n) for n in range(count)] for subject, count in symptoms.items()))
    keys = (key for one_round in rounds for key in one_round if key is not None)
    return {key: rank for rank, key in enumerate(itertools.islice(keys, IN_FULL))}


def _detail(findings: Sequence[LatestFinding], links: PageLinks, rank: int) -> FindingDetail:
    row, *same_symptom = links.rows(findings)
    folder = findings[0].run.finding_folder(row.record.folder)
    if folder is None:
        return FindingDetail(row, (), f"Its folder is gone: {row.record.folder}", None, same_symptom)
    try:
        lines = _lines(folder)
    except UsageError as error:
        return FindingDetail(row, (), str(error), None, same_symptom)
    pictures = read_pictures(folder) if rank < WITH_PICTURES else []
    # The first picture is the case as it was found, whose pattern says most.
    picture = next(((caption, drawn(coarser(grid, MOST_CELLS), rank + 1)) for caption, grid in pictures), None)
    return FindingDetail(row, lines, "", picture, same_symptom)


def _lines(folder: Path) -> list[tuple[str, str, bool]]:
    """Return the words of a finding, and which of them are commands.

    Raises
    ------
    UsageError
        If the finding cannot be read, or its details do not fit together.
    """
    finding = read_finding(folder)
    finding = replace(finding, options=plain_options(finding.options))
    try:
        lines = finding_lines(finding, folder)
    except Exception as error:  # noqa: BLE001 - the details are somebody else's, and may be of any shape
        raise UsageError(f"{folder}: its words are damaged: {type(error).__name__}") from None
    return [(label, clip(text, LONGEST_LINE), is_command(label, text)) for label, text in lines[:MOST_LINES]]


def plain_options(options: str) -> str:
    """Return the options of a replay so that a shell takes them for nothing else: people paste that line."""
    try:
        parts = shlex.split(options)
    except ValueError:
        return ""
    return shlex.join(parts) if len(parts) == 2 and parts[0] == "--impl" else ""
