"""The matrix: implementations in rows, targets in columns, results in cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from npudiff.show.rendering import counted, number
from npudiff.show.run_page.state import LatestResult, State, Subject, TargetColumn, count_findings

MOST_ROWS, MOST_COLUMNS = 1_500, 12


class Cell(NamedTuple):
    """The result of an implementation on a target."""

    text: str
    kind: str
    """Its CSS class."""
    note: str


@dataclass(frozen=True)
class Matrix:
    """The rows and columns that are shown."""

    columns: Sequence[TargetColumn]
    components: Sequence[tuple[str, Sequence[tuple[Subject, Sequence[Cell]]]]]
    """Components, and the rows of each."""
    rows_left_out: int
    columns_left_out: int


def matrix_of(state: State) -> Matrix:
    """Return the matrix."""
    columns = state.columns[:MOST_COLUMNS]
    rows = [
        (subject, [cell(results.get(column, ())) for column in columns])
        for subject, results in list(state.by_subject.items())[:MOST_ROWS]
    ]
    components = [(component, list(members)) for component, members in groupby(rows, key=lambda row: row[0][0])]
    return Matrix(columns, components, len(state.by_subject) - len(rows), len(state.columns) - len(columns))


def cell(results: Sequence[LatestResult]) -> Cell:
    """Return the cell of results."""
    findings, cases = count_findings(results), sum(result.job.cases for result in results)
    narrowed = bool(results) and all(result.run.record.scope for result in results if result.job.cases)
    without = len({name for result in results for name in result.job.without})
    missing = sum(result.job.verdict == "not run" and not result.job.without for result in results)
    note = counted(cases, "case")
    note += ", narrowed" if narrowed else ""
    note += f", without {counted(without, 'known issue')}" if without else ""
    note += f", {number(missing)} not run" if missing else ""
    if findings:
        return Cell(counted(findings, "finding"), "no", note)
    if cases:
        return Cell("ok so far", "few", note) if missing else Cell("ok", "yes", note)
    if without and not missing:
        return Cell(counted(without, "known issue"), "few", "nothing else was run")
    return Cell("not run" if missing or not results else "not applicable", "none", "")
