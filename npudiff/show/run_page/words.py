"""Text from records and findings on its way into HTML, and the small parts that all sections are made of."""

from __future__ import annotations

import html
import os
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from npudiff.show.run_page.state import State, Subject
from npudiff.text import clipped, printable

MOST_SHOWN = 240
"""Characters of a text in a table."""

_AS_IT_IS = frozenset((string.ascii_letters + string.digits + "-._~/").encode())


def words(text: object, most: int = MOST_SHOWN) -> str:
    """Return text as HTML: without control characters, not too long, and with nothing in it that means anything."""
    return html.escape(printable(clipped(str(text), most)))


def name_of(*parts: str) -> str:
    """Return a dotted name as HTML, which may be broken where people would break it."""
    return words(".".join(parts)).replace(".", ".<wbr>").replace("_", "_<wbr>")


def number(value: float) -> str:
    """Return a count as people read it."""
    return f"{value:,.0f}"


def counted(count: int, noun: str) -> str:
    """``1 finding``, ``2,000 findings``."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def phone(noun: str) -> str:
    """Return the head of a column in words, for narrow screens, where a table is a list and has no heads."""
    return f"<span class=phone> {noun}</span>"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def address(path: Path, page: Path) -> str:
    """Return how a page refers to a file: relative to its own folder, with all that is not plain as percents."""
    relative = Path(os.path.relpath(path.absolute(), page.absolute().parent)).as_posix()
    return "".join(chr(byte) if byte in _AS_IT_IS else f"%{byte:02X}" for byte in os.fsencode(relative))


def anchors(state: State) -> Mapping[Subject, str]:
    """Return the name of the part of the page that has the findings of an implementation."""
    subjects = dict.fromkeys((one.finding.component, one.finding.implementation) for one in state.findings)
    return {subject: f"impl-{place}" for place, subject in enumerate(subjects, 1)}


def table(caption: str, columns: Sequence[str], rows: Iterable[str], kind: str = "words") -> str:
    """Return a table; rows and columns are HTML, the caption is text."""
    head = "".join(f"<th scope=col>{column}</th>" for column in columns)
    return (
        f'<div class=wide><table class="{kind}"><caption class=hidden>{words(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def left_out(total: int, shown: int, what: str) -> str:
    """Return a line that says how many of something are not on the page, if so."""
    more = max(0, total - shown)
    return f"<p class=none>{number(more)} more {words(what)} are left out here.</p>" if more else ""


def folded(summary: str, body: str, *, opened: bool = False) -> str:
    """Return a part that is folded; the summary is HTML."""
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{body}</details>"


def few_and_rest(rows: Sequence[str], most: int, made: Mapping[str, object]) -> Iterator[str]:
    """Yield a table of the first rows, and one of the others that is folded."""
    caption, columns, kind = str(made["caption"]), made["columns"], str(made.get("kind", "words"))
    assert isinstance(columns, Sequence)  # noqa: S101 - what callers give
    yield table(caption, columns, rows[:most], kind)
    if len(rows) > most:
        rest = table(f"{caption}: the others", columns, rows[most:], kind)
        yield folded(f"{number(len(rows) - most)} others", rest)
