"""Text that comes from elsewhere, made fit for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LINE = 500
"""Characters of a line that are shown; hostile files can hold megabytes."""

MOST_LISTED, SHOWN = 33, 8
"""Parts of a list up to which all are shown, and those that are shown of a longer one."""


def printable(text: str) -> str:
    """Return text without control characters and lone surrogates, so that it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def clipped(text: str, limit: int = MAX_LINE) -> str:
    """Return text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def counted(number: int, noun: str) -> str:
    """``1 finding``, ``2 findings``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(parts: Sequence[str], noun: str) -> str:
    """``a b c``, or the first of many parts and how many there are: ``a b c ... (65 requests)``."""
    if len(parts) <= MOST_LISTED:
        return " ".join(parts)
    return f"{' '.join(parts[:SHOWN])} ... ({counted(len(parts), noun)})"
