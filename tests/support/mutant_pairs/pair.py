from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Where a mutant differs from the correct implementation that it was made from, and where it does not."""

    shows: Any
    """A case in which the bug shows, written by hand."""
    elsewhere: list[Any]
    """Cases in which it does not: there both give the same bits."""
    smallest: str
    """The case that every seed shrinks to, as the console prints it; empty if that depends on the seed."""
    rejected: bool = False
    """Whether the operator refuses the wrong call, which is a finding too."""
    everywhere: bool = False
    """Whether every case shows the bug, so that there is none elsewhere."""
    otherwise: tuple[str, ...] = ()
    """Other small cases at which some seeds end; without a smallest one, all at which they do."""
