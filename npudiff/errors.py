"""Errors that end in one line for the user, and the exit codes of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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


class DeviceLost(Exception):  # noqa: N818 - what happened
    """A fresh process does not get a known answer from the device: no result counts any more."""


MANY = 32
"""Names above which only those are listed that look like the unknown one."""


def unknown(kind: str, name: str, known: Iterable[object]) -> UsageError:
    """Return the error for a name that is not known, with the names that are, or those of many that are like it."""
    names = sorted(str(item) for item in known)
    if len(names) <= MANY:
        return UsageError(f"unknown {kind} {name!r}; known: {', '.join(names) or 'none'}")
    similar = difflib.get_close_matches(name, names, n=3) or names[:3]
    return UsageError(f"unknown {kind} {name!r}; known: {', '.join(similar)} and {len(names) - len(similar)} more")
