from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from npudiff.implementation import Implementation


@dataclass(frozen=True)
class Pair:
    """A mutant beside the correct implementation from which it differs.

    Attributes
    ----------
    adapter : Implementation
        The correct one.
    shows : case
        A case in which the bug shows, written by hand.
    elsewhere : list of cases
        Cases in which it does not: there both give the same bits.
    smallest : str
        The case that every seed shrinks to, as the console prints it; empty if that depends on the seed.
    otherwise : tuple of str
        Other small cases at which some seeds end.
    rejected : bool
        Whether the operator refuses the wrong call, which is a finding too.
    everywhere : bool
        Whether every case shows the bug, so that there is none elsewhere.
    """

    adapter: Implementation
    shows: Any
    elsewhere: list[Any]
    smallest: str
    rejected: bool = False
    everywhere: bool = False
    otherwise: tuple[str, ...] = ()
