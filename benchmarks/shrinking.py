"""How long it takes from the first failing case to the smallest one, over all mutants."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.measure import Row
from npudiff.component import Subject
from npudiff.constraints import Constraints, parse_where
from npudiff.discovery import load_components, load_target, select_implementations
from npudiff.engine import EQUIVALENCE, run_job
from npudiff.outcome import Budget, Job

SEEDS = range(5)
LONG = ("kv_length=131072", "window=4096,none")


def rows() -> Iterator[Row]:
    """Find and shrink every mutant, with default cases and with a 128K history."""
    yield _row("any case", Constraints(), len(SEEDS))
    yield _row("128K history, window 4096 or none", parse_where(LONG), len(SEEDS))


def _row(name: str, where: Constraints, seeds: int) -> Row:
    target, times, missed = load_target("sim", None), [], []
    for component in load_components([]):
        for item in select_implementations([component], []):
            constraints = item.constraints.within(where)
            if item.wrong is None or not constraints or not set(_axes(where)) <= set(component.axes):
                continue
            for seed in range(seeds):
                outcome = run_job(Job(Subject(component, item, target), EQUIVALENCE, constraints), Budget(seed=seed))
                times.append(outcome.shrink_seconds)
                if outcome.failure is None:
                    missed.append(f"{item.name} (seed {seed})")
    median = statistics.median(times)
    found = f"{len(times) - len(missed)} of {len(times)} found" + (f", missed {', '.join(missed)}" if missed else "")
    measured = f"median {median:.2f} s, longest {max(times):.1f} s; {found}"
    return Row(f"shrinking a mutant, {name}", measured, "median ≤ 5 s", median <= 5)


def _axes(where: Constraints) -> set[str]:
    return {axis for box in where.boxes for axis in box}
