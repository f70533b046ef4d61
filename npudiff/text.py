"""Text that comes from elsewhere, made fit for a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TextIO

MAX_LINE = 500
"""Characters of a line that are shown; hostile files can hold megabytes."""

MOST_OF_A_MESSAGE, MOST_LINES = 4_000, 100
"""Characters of each line of a message, and lines of it."""

MOST_LISTED, SHOWN = 33, 8
"""Parts of a list up to which all are shown, and those that are shown of a longer one."""


def printable(text: str) -> str:
    """Return text without control characters and lone surrogates, so that it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def printable_lines(text: str) -> str:
    """Return text of several lines without other control characters."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def complain(text: str) -> None:
    """Write ``npudiff: `` and a message to standard error; what somebody else wrote into it cannot steer a terminal."""
    lines = [clipped(line, MOST_OF_A_MESSAGE) for line in printable_lines(text).split("\n")[:MOST_LINES]]
    with contextlib.suppress(OSError):  # nobody listens
        _write("npudiff: " + "\n".join(lines), sys.stderr)


def say(text: str) -> None:
    """Write lines to standard output, fit for a terminal."""
    try:
        _write(printable_lines(text), sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        lose(error)


_lost: list[OSError] = []


def lose(error: OSError) -> None:
    """Remember that standard output, on a full disk, say, takes nothing: whatever else there is to do is worth more."""
    _lost[:] = [error]


def output_is_lost() -> OSError | None:
    """Return why standard output took nothing since this was asked for the last time; None if it took all."""
    return _lost.pop() if _lost else None


def _write(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # it was closed before the program began
        print(text, file=stream, flush=True)


def clipped(text: str, limit: int = MAX_LINE) -> str:
    """Return text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def counted(number: int, noun: str) -> str:
    """``1 finding``, ``2 findings``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(parts: Sequence[str], noun: str, most: int = MOST_LISTED) -> str:
    """``a b c``, or the first of many parts and how many there are: ``a b c ... (65 requests)``."""
    if len(parts) <= most:
        return " ".join(parts)
    return f"{' '.join(parts[:SHOWN])} ... ({counted(len(parts), noun)})"
