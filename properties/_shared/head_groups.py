"""Query or value heads that share a key head, where the number of both together may be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npudiff.model.constraints import Allowed

ANY = range(1, 2**18)


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
