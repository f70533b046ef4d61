"""A finding on the page: its words, its pictures and the line that replays it, read from its folder when shown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from npudiff.errors import UsageError
from npudiff.findings.finding import read_finding
from npudiff.findings.picture import coarser, read_pictures
from npudiff.show.finding_page import PAGE_FILE
from npudiff.show.picture import drawn
from npudiff.show.report import finding_lines, is_command
from npudiff.show.run_page.state import LatestFinding
from npudiff.show.run_page.words import address, folded, name_of, number, table, words

MOST_LINES, LONGEST_LINE = 40, 1_200
PICTURES_OF_ONE = 1
"""The first one is the case as it was drawn, whose pattern says most."""

MOST_CELLS = 48
"""Rows and columns of a picture: its page has the finer one."""

MOST_OTHERS = 5_000
"""Rows of one list of findings."""


def card(found: LatestFinding, others: Sequence[LatestFinding], page: Path, pictures: int) -> str:
    """Return a finding in full, with those that look the same folded.

    Parameters
    ----------
    found : LatestFinding
        The finding.
    others : sequence of LatestFinding
        Findings with the same symptom.
    page : pathlib.Path
        The file that this becomes a part of.
    pictures : int
        Number of the first of its pictures on the page; 0 for none.
    """
    finding = found.finding
    name, verdict = words(finding.property_name), words(finding.verdict)
    title = f"<h4>{name}: <span class=no>{verdict}</span> <small>{words(found.place.text)}</small></h4>"
    parts = ["<article class=finding>", title, *_body(found, page, pictures)]
    if others:
        said = f"and {number(len(others))} other{'s' if len(others) > 1 else ''} with the same symptom"
        parts.append(folded(said, finding_list(others, page)))
    return "".join((*parts, "</article>"))


def _body(found: LatestFinding, page: Path, pictures: int) -> Iterator[str]:
    folder = found.kept.finding_folder(found.finding.folder)
    if folder is None:
        yield f"<p>{words(found.finding.line)}</p><p class=few>Its folder is gone: {words(found.finding.folder)}</p>"
        return
    try:
        rows = list(_lines(folder))
    except UsageError as error:
        yield f"<p>{words(found.finding.line)}</p><p class=few>{words(error)}</p>"
        return
    yield _facts(rows)
    if pictures:
        yield from _figures(folder, pictures)
    yield f"<p>{_link(found, page)}</p>"


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    """The words of a finding.

    Raises
    ------
    UsageError
        If it cannot be read, or says what no words can be made of.
    """
    finding = read_finding(folder)
    finding = replace(finding, options=plain_options(finding.options))
    try:
        lines = finding_lines(finding, folder)
    except Exception as error:  # noqa: BLE001 - what it holds is somebody else's, and may be of any shape
        raise UsageError(f"{folder}: its words are damaged: {type(error).__name__}") from None
    yield from lines[:MOST_LINES]


def plain_options(options: str) -> str:
    """Return the options of a replay so that a shell takes them for nothing else: people paste that line."""
    try:
        parts = shlex.split(options)
    except ValueError:
        return ""
    return shlex.join(parts) if len(parts) == 2 and parts[0] == "--impl" else ""


def _facts(lines: Sequence[tuple[str, str]]) -> str:
    rows = []
    for label, text in lines:
        shown = words(text, LONGEST_LINE)
        value = f"<code>{shown}</code>" if is_command(label, text) else shown
        rows.append(f"<tr><th scope=row>{words(label)}</th><td>{value}</td></tr>")
    caption = "<caption class=hidden>The finding in words</caption>"
    return f'<table class="words facts">{caption}<tbody>{"".join(rows)}</tbody></table>'


def _figures(folder: Path, pictures: int) -> Iterator[str]:
    for place, (caption, grid) in enumerate(read_pictures(folder)[:PICTURES_OF_ONE]):
        drawing = drawn(coarser(grid, MOST_CELLS), pictures + place)
        shown = f"<figcaption>Where: {words(caption)}</figcaption><div class=wide>{drawing}</div>"
        yield f"<figure>{shown}</figure>"


def _link(found: LatestFinding, page: Path) -> str:
    """A link to the finding's own page, where there is one."""
    folder = found.kept.finding_folder(found.finding.folder)
    file = None if folder is None else folder / PAGE_FILE
    if file is None or file.is_symlink() or not file.is_file():
        return "<span class=none>no page</span>"
    said = f"{found.finding.component}.{found.finding.implementation}: {found.finding.property_name}"
    return f'<a href="{address(file, page)}">its page<span class=hidden> ({words(said)})</span></a>'


def finding_list(findings: Sequence[LatestFinding], page: Path, *, named: bool = False) -> str:
    """Return findings as rows: a line each, with a link to the page of each."""
    rows = []
    for found in findings[:MOST_OTHERS]:
        finding = found.finding
        name = f"{name_of(finding.component, finding.implementation)}<br>" if named else ""
        rows.append(
            f"<tr><th scope=row>{name}{name_of(finding.property_name)}</th><td class=no>{words(finding.verdict)}</td>"
            f"<td>{words(found.place.text)}</td><td>{words(finding.line)}</td><td>{_link(found, page)}</td></tr>"
        )
    rest = len(findings) - len(rows)
    more = f"<p class=none>{number(rest)} more are in the findings folder.</p>" if rest else ""
    return table("Findings", ("property", "verdict", "where", "smallest case", "page"), rows, "words list") + more
