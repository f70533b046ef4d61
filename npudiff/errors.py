"""Errors that end in one line for the user, and the exit codes of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes: those of pytest, plus one for a lost device."""

    CLEAN = 0
    FINDINGS = 1
    INTERRUPTED = 2
    INTERNAL = 3
    USAGE = 4
    NOTHING_RAN = 5
    DEVICE_LOST = 6


class UsageError(Exception):
    """What the user asked for cannot be done as asked; the message is the one line that they see."""


class DeviceLost(Exception):
    """A fresh process does not get a known answer from the device: no result counts any more.

    Attributes
    ----------
    worker : int
        Number of the worker whose device it is, where there are several.
    """

    worker = 0


MANY = 64
"""Names above which only those are listed that look like the unknown one."""

LIKENESS = 0.7
"""Share of equal letters above which one name is taken for a misspelling of another."""


def nearest(name: str, known: Iterable[object]) -> str | None:
    """Return the known name that is most like a misspelled one; None if none is."""
    similar = _similar(name, sorted(map(str, known)), LIKENESS)
    return similar[0] if similar and similar[0] != name else None


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Return the end of a message, ``; did you mean 'rms_norm'?``; nothing if no known name is like this one."""
    near = nearest(name, known)
    return "" if near is None else f"; did you mean {near!r}?"


def unknown(kind: str, name: str, known: Iterable[object]) -> UsageError:
    """Return the error for a name that is not known: the nearest one, and all that are, or the similar ones of many."""
    names = sorted({str(item) for item in known})
    hint = did_you_mean(name, names)
    said = f"unknown {kind} {name!r}{hint or ';'} known: "
    if len(names) <= MANY:
        return UsageError(said + (", ".join(names) or "none"))
    similar = _similar(name, names, 0.6) or names[:3]
    return UsageError(f"{said}{', '.join(similar)} and {len(names) - len(similar)} more")


def _similar(name: str, names: Sequence[str], likeness: float) -> list[str]:
    """Return up to three names that are like this one, the nearest first.

    Case and hyphens make no difference, and what stands before the last dot counts for nothing where it is right.
    """
    plain = {one: one.lower().replace("-", "_") for one in (name, *names)}
    head = plain[name].rpartition(".")[0] + "."
    if any(plain[one].startswith(head) for one in names):
        plain = {one: text.removeprefix(head) for one, text in plain.items()}
    spelled = {plain[one]: one for one in reversed(names)}
    return [spelled[match] for match in difflib.get_close_matches(plain[name], spelled, n=3, cutoff=likeness)]
