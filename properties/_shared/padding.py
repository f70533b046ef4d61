"""Where padded tokens stand among the others: what stops at the first of them shows only where others follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from npudiff.model.case import axis
from npudiff.reference.paged_cache import SKIPPED

PADDINGS = ("slot 0", "slot -1")

PLACES = ("end", "start", "between", "alternating")
"""between: behind the first half of the tokens. alternating: a padded one behind each of the first tokens."""


def padding_place_axis() -> Any:  # noqa: ANN401 - a field of text
    """Declare the field ``padding_place``; without padded tokens they stand at the end, so that there is one case."""
    return axis(
        "where padded tokens stand: behind the others, before them, in their middle, or in turns", PLACES, PLACES[0],
        applies=lambda case: case.padded_tokens > 0, shown="padding {}", region="padding before others",
    )  # fmt: skip


def padding_axis() -> Any:  # noqa: ANN401 - a field of text
    """Declare the field ``padding``: where padded tokens go."""
    return axis("where padded tokens go", PADDINGS, PADDINGS[0], applies=lambda case: case.padded_tokens > 0, shown="")


def padded_text(case: Padded) -> str:
    """Return how many tokens are padded, and to what."""
    return f"{case.padded_tokens} padded to {case.padding}" if case.padded_tokens else ""


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
