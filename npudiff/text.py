"""Text that comes from elsewhere, made fit for a terminal."""

from __future__ import annotations

MAX_LINE = 500
"""Characters of a line that are shown; hostile files can hold megabytes."""


def printable(text: str) -> str:
    """Return text without control characters and lone surrogates, so that it cannot steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def clipped(text: str, limit: int = MAX_LINE) -> str:
    """Return text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def counted(number: int, noun: str) -> str:
    """``1 finding``, ``2 findings``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
