"""Drift: what the errors of all cases of a job have in common, in plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Sums(NamedTuple):
    """The errors of one output of one case along one direction.

    With ``x`` the error of an element and ``y`` the direction there, both over the element's bound.
    """

    elements: int
    """Elements that were summed."""
    along: float
    """Sum of ``x * y``."""
    squares: float
    """Sum of ``y ** 2``."""
    sizes: float
    """Sum of ``|y|``."""
    values: float
    """Sum of ``|value| / bound * |y|``."""
    errors: float
    """Sum of ``x ** 2``."""


CaseSums = dict[str, dict[str, Sums]]
"""Name of an output to name of a direction to sums."""


def sums_from_plain(plain: Mapping[str, Mapping[str, Sequence[Any]]]) -> CaseSums:
    """Return the sums of a case that were sent as plain values."""
    return {
        output: {direction: Sums(*numbers) for direction, numbers in directions.items()}
        for output, directions in plain.items()
    }


@dataclass(frozen=True)
class ShownCase:
    """A case that shows a drift."""

    case: str
    """As JSON."""
    size: float
    """Its mean error along the direction, over the bound; signed."""
    step: float
    """How far it is along the direction: of the gain, by which factor it is too long, less 1; signed."""


@dataclass(frozen=True)
class Drift:
    """The mean error of an output along a direction, over all cases of a job."""

    output: str
    direction: str
    """Of what: one of ``npudiff.judge.drift``, or one that the reference names."""
    size: float
    """Mean error over bound; signed."""
    most: float
    """The largest that a correct device may have."""
    score: float
    """By how many standard errors it is beyond that, each case counted once; negative where it is not."""
    cases: int
    elements: int
    """What it was measured on."""
    shown: tuple[ShownCase, ...] = ()
    """Cases that show it best, the best first; of one that is a finding only."""
    remembered: tuple[str, ...] = ()
    """Cases as JSON, chosen without a look at their errors, that show it together; of a finding only."""
