"""Parts of a list that are empty: requests without rows, experts without tokens, at every place where one may stand.

What leaves empty parts out of one list and not of another is right while the empty ones are the last, and wrong for
all parts behind one in the middle.
"""

from __future__ import annotations

from collections.abc import Collection

KINDS = ("none", "first", "middle", "last", "all but one")
"""Which parts are empty."""

OFTEN = tuple(choice for kind in KINDS[1:] for choice in (*["none"] * 3, kind))
"""One list in four has an empty part: for lists that have several parts in few cases. Shrinking goes down by one option
or two, so that each kind stands behind none."""

SELDOM = tuple(choice for kind in KINDS[1:] for choice in (*["none"] * 5, kind))
"""One list in six: for lists that have several parts in most cases."""


def which(kind: str, parts: int) -> Collection[int]:
    """Return the parts that are empty of as many: some part is always left.

    Of two parts the middle is the first, so that what shows behind any empty part shrinks to two.

    Parameters
    ----------
    kind : str
        One of ``KINDS``.
    parts : int
        Parts of the list, the empty ones included.
    """
    if not fits(kind, parts):
        return ()
    if kind == "all but one":
        return [part for part in range(parts) if part != parts // 2]
    return {"none": [], "first": [0], "middle": [(parts - 1) // 2], "last": [parts - 1]}[kind]


def fits(kind: str, parts: int) -> bool:
    """Whether there are enough parts for some to be empty."""
    return kind == "none" or parts > 1
