"""Where an allocator puts new tokens: anywhere, in runs, in whole pages, in a run with a stray.

Writers that copy have fast paths for slots that follow each other, and are wrong where they only seem to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from npudiff.draw.data import Stream
from npudiff.model.case import axis

SLOT_ORDERS = ("scattered", "run", "pages", "run with a stray", "gaps")
"""scattered: any slots in any order. run: one after another, from any slot on. pages: whole pages in any order, each in
order. run with a stray: all but one. gaps: rising, with holes."""

PAGE_ORDERS = ("scattered", "run")
"""scattered: pages have names in no order. run: those of a request follow each other."""


def slot_order_axis() -> Any:  # noqa: ANN401 - a field of text
    """Declare the field ``slot_order``."""
    return axis(
        "how slots of tokens lie: scattered, a run, whole pages, a run with a stray, or rising with gaps", SLOT_ORDERS,
        SLOT_ORDERS[0], drawn=(*SLOT_ORDERS[:1] * 4, *SLOT_ORDERS[1:]), shown="slots in {}", region="slots in {}",
    )  # fmt: skip


def page_order_axis(applies: Callable[[Any], bool] | None = None) -> Any:  # noqa: ANN401 - a field of text
    """Declare the field ``page_order``."""
    return axis(
        "whether pages have names in no order, or follow each other", PAGE_ORDERS, PAGE_ORDERS[0],
        drawn=(*PAGE_ORDERS[:1] * 3, *PAGE_ORDERS[1:]), applies=applies, shown="pages in a {}", region="pages in a {}",
    )  # fmt: skip


class Ordered(Protocol):
    """A case whose slots have an order."""

    @property
    def slot_order(self) -> str:
        """One of ``SLOT_ORDERS``."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    @property
    def seed(self) -> int:
        """Seed of the case."""


def slots_of(case: Ordered, tokens: int, pages: int) -> Sequence[int]:
    """Return slots of tokens, all different, in the pages behind the dummy page 0.

    Parameters
    ----------
    case : Ordered
        Says how they lie.
    tokens : int
        How many there are; they fit.
    pages : int
        Pages of the pool but the dummy.
    """
    size, stream = case.page_size, Stream(case.seed, "slots")
    room = pages * size
    if case.slot_order in ("scattered", "gaps"):
        places = stream.permutation(room)[:tokens]
        places = sorted(places) if case.slot_order == "gaps" else places
    elif case.slot_order == "pages":
        filled = stream.permutation(pages)[: -(-tokens // size)]
        places = [page * size + offset for page in filled for offset in range(size)][:tokens]
    else:
        start = stream.integers(0, room - tokens + 1, 1)[0]
        places = list(range(start, start + tokens))
        if case.slot_order == "run with a stray":
            places = _with_stray(places, room, stream)
    return [size + place for place in places]


def _with_stray(places: Sequence[int], room: int, stream: Stream) -> list[int]:
    """One of a run elsewhere: in the first free slot behind or before all, or where none is free, in another's."""
    found, stray = list(places), stream.integers(0, len(places), 1)[0]
    if found[-1] + 1 < room:
        found[stray] = room - 1
    elif found[0] > 0:
        found[stray] = 0
    else:
        other = (stray + 1) % len(found)
        found[stray], found[other] = found[other], found[stray]
    return found


def page_names(stream: str, seed: int, pages: int, order: str) -> list[int]:
    """Return the pages of a pool but the dummy page 0, in the order in which requests take them.

    Parameters
    ----------
    stream : str
        Name of the stream of numbers, of which the order is made.
    seed : int
        Seed of the case.
    pages : int
        Pages of the pool, the dummy page included.
    order : str
        One of ``PAGE_ORDERS``.
    """
    if order == "run":
        return list(range(1, pages))
    return [1 + page for page in Stream(seed, stream).permutation(pages - 1)]
