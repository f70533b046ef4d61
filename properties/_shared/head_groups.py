"""Numbers of heads: those that share a key head, where the number of both may be asked for; many beside many pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from npudiff.model.constraints import Allowed

ANY = range(1, 2**18)

MANY_PAGES = 16
"""Pages of one request beyond which kernels go through its table in parts."""


def asked_heads(case: Any) -> Allowed:  # noqa: ANN401 - a case that is being drawn
    """Return the heads that the constraints allow."""
    allowed: Allowed = vars(case).get("box", {}).get("heads", ANY)
    return allowed


def has_groups(case: Any, key_heads: int) -> bool:  # noqa: ANN401 - a case that is being drawn
    """Return whether so many key heads go with heads that are asked for."""
    return any(count % key_heads == 0 for count in asked_heads(case))


def groups(case: Any, key_heads: int, usual: Sequence[int]) -> Sequence[int]:  # noqa: ANN401 - a case
    """Return heads per key head: usual ones, or what the heads that are asked for come to."""
    asked = asked_heads(case)
    fitting = [group for group in usual if group * key_heads in asked]
    return fitting or [count // key_heads for count in asked if count % key_heads == 0]


def has_many_pages(lengths: Iterable[int], page_size: int) -> bool:
    """Return whether some request of these lengths has many pages."""
    return max(lengths, default=0) > MANY_PAGES * page_size


def with_many(usual: Sequence[int], many: Sequence[int], *, beside_many: bool) -> Sequence[int]:
    """Return usual numbers of heads, and beside many pages or keys larger ones more often.

    Kernels cut both into blocks, and what is wrong with blocks of one in blocks of the other shows in no case with a
    single block of either. Drawn one by one, many heads and many pages met in less than one case of a hundred.
    """
    return (*usual, *(tuple(many) * max(1, 2 * len(usual) // len(many)))) if beside_many else usual
