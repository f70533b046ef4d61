"""What versions of a backend's package make of the operator calls of its implementations.

A package says so through an entry point of the group ``npudiff.contracts``: a ``ContractFactory``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Standing(Enum):
    """What a version makes of the calls of an operator, from best to worst; the values are the words of the table."""

    ACCEPTED = "yes"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REFUSED = "no"
    MISSING = "missing"


@dataclass(frozen=True)
class Answer:
    """What a version makes of the calls of an operator, and why."""

    standing: Standing
    reason: str = ""


ACCEPTED = Answer(Standing.ACCEPTED)


@dataclass(frozen=True)
class Release:
    """One version."""

    name: str
    """The version, and where it is if it is not recorded: ``2.13.0``, ``2.13.0 (installed)``."""
    source: str
    """What was read: the name of a wheel, or a folder."""
    answers: Mapping[str, Answer]
    """An answer for every operator that is called."""
    judged: bool = False
    """Whether a call that it does not accept is a finding."""


@dataclass(frozen=True)
class Contract:
    """What versions of a package make of the calls."""

    package: str
    """Name of the package."""
    base: str
    """The version that the calls are written for."""
    forms: int
    """Number of forms of calls."""
    releases: tuple[Release, ...]
    """From old to new."""
    notes: tuple[str, ...] = ()
    """What else there is to say, a line each."""

    @property
    def findings(self) -> int:
        """Operators whose calls a judged release does not accept as they are; unknown is no finding."""
        fine = (Standing.ACCEPTED, Standing.UNKNOWN)
        judged = (release for release in self.releases if release.judged)
        return len({name for release in judged for name, one in release.answers.items() if one.standing not in fine})


ContractFactory = Callable[[Sequence[Path]], Contract]
"""Builds a contract; releases in given wheels or folders are read and judged too. May raise ``UsageError``."""
