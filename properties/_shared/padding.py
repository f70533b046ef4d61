"""Where padded tokens stand among the others: what stops at the first of them shows only where others follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from npudiff.draw.chooser import Chooser
from npudiff.model.constraints import Axis, Box
from npudiff.reference.paged_cache import SKIPPED

PLACES = ("end", "start", "between", "alternating")
"""between: behind the first half of the tokens. alternating: a padded one behind each of the first tokens."""

AXIS = Axis("where padded tokens stand: behind the others, before them, in their middle, or in turns", PLACES)


def draw_place(choose: Chooser, box: Box, padded: int) -> str:
    """Draw where padded tokens stand; without any they stand at the end, so that there is one case and not four."""
    place = str(choose.value(box, "padding_place", PLACES))
    return place if padded else PLACES[0]


class Padded(Protocol):
    """A case with padded tokens."""

    @property
    def padding(self) -> str:
        """Slots of padded tokens: ``slot 0``, or the number that says to skip them."""

    @property
    def padded_tokens(self) -> int:
        """How many there are."""

    @property
    def padding_place(self) -> str:
        """One of ``PLACES``."""


def with_padding(own: Sequence[int], case: Padded) -> list[int]:
    """Return slots of all tokens in the order of a batch.

    Parameters
    ----------
    own : sequence of int
        Slots of the real tokens; they keep their order.
    case : Padded
        Says how many tokens are padding, what their slots are, and where they stand.
    """
    padded = [0 if case.padding == "slot 0" else SKIPPED] * case.padded_tokens
    return _arranged(own, padded, case.padding_place)


def _arranged(own: Sequence[int], padded: Sequence[int], place: str) -> list[int]:
    if place == "start":
        return [*padded, *own]
    if place == "between":
        middle = (len(own) + 1) // 2
        return [*own[:middle], *padded, *own[middle:]]
    if place == "alternating":
        turns = [slot for pair in zip(own, padded, strict=False) for slot in pair]
        return [*turns, *own[len(padded) :], *padded[len(own) :]]
    return [*own, *padded]


def check_place(place: str) -> None:
    """Raise ``ValueError`` if there is no such place."""
    if place not in PLACES:
        raise ValueError(f"padding_place is one of {', '.join(PLACES)}, got {place}")
