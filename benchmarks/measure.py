"""Timing in one process, rounds of all contestants interleaved so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, what came out, and what is asked for."""

    what: str
    measured: str
    asked: str
    holds: bool


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def medians(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each contestant; one round before the first is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, action in contestants.items():
            taken = seconds(action)
            if round_:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}
