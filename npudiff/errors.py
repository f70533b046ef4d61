"""Errors that end in one line for the user, and the exit codes of the command line."""

from __future__ import annotations

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


def unknown(kind: str, name: str, known: object) -> UsageError:
    """Return the error for a name that is not known, with the names that are."""
    names = ", ".join(sorted(str(item) for item in known)) if hasattr(known, "__iter__") else str(known)
    return UsageError(f"unknown {kind} {name!r}; known: {names or 'none'}")
