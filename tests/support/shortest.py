"""How long a call takes, whatever else the machine does: other tests, and collections of garbage of a whole session."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def shortest(call: Callable[[], object], tries: int = 3, enough: float = 0.0) -> float:
    """Return the seconds of the shortest of some calls; one of at most ``enough`` seconds ends them."""
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
        if times[-1] <= enough:
            break
    return min(times)
