"""Renders pages from templates, which escape every text and strip it of control characters."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from npudiff.text import clipped, printable, printable_lines

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

MOST_SHOWN = 240
"""Characters of a text in a table."""


class SafeHtml(str):
    """HTML that npudiff made of escaped texts and checked numbers: templates do not escape it again."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return the HTML."""
        return str(self)


def render(template: str, **view: object) -> str:
    """Return the page that a template makes of data.

    Parameters
    ----------
    template : str
        File name of the template.
    **view
        Names that the template uses; a name that it uses and does not have is an error.
    """
    return _environment().get_template(template).render(view) + "\n"


def escaped(text: str) -> SafeHtml:
    """Return text of several lines as HTML, also for the attribute of an element."""
    return SafeHtml(html.escape(printable_lines(text)))


def number(value: float) -> str:
    """``2,000``."""
    return f"{value:,.0f}"


def counted(count: int, noun: str) -> str:
    """``1 finding``, ``2,000 findings``."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """``1.5 s``, ``12 min``, ``1 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clip(text: object, most: int = MOST_SHOWN) -> str:
    """Return the beginning of a text that is too long for its place on a page."""
    return clipped(str(text), most)


def breakable(name: str) -> SafeHtml:
    """Return a dotted name as HTML that may break after its dots and underscores."""
    return SafeHtml(html.escape(printable(clip(name))).replace(".", ".<wbr>").replace("_", "_<wbr>"))


@cache
def _environment() -> Environment:
    # Few commands write a page: the others must not pay for the import.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters = {"number": number, "counted": counted, "duration": duration, "clip": clip, "breakable": breakable}
    environment.filters.update(filters)
    return environment


def _finalize(value: object) -> object:
    """Strip a value of control characters before it is escaped; not what is HTML already, such as a macro's result."""
    return value if hasattr(value, "__html__") else printable(str(value))
