"""How long it takes from the first failing case to the smallest one, over all mutants."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.measure import Row
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints, parse_where
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.discovery import load_components, load_target, select_implementations
from npudiff.run.engine import run_job

SEEDS = range(5)
LONG = ("kv_length=131072", "window=4096,none")


def rows() -> Iterator[Row]:
    """Find and shrink every mutant, with default cases and with a 128K history."""
    yield _row("any case", Constraints(), len(SEEDS))
    yield _found_at_length(parse_where(LONG), len(SEEDS))


def _row(name: str, where: Constraints, seeds: int) -> Row:
    outcomes = list(_outcomes(where, seeds))
    times = [outcome.shrink_seconds for outcome in outcomes if outcome.failure is not None]
    median = statistics.median(times)
    measured = f"median {median:.2f} s, longest {max(times):.1f} s; {len(times)} of {len(outcomes)} found"
    return Row(f"shrinking a mutant, {name}", measured, "median ≤ 5 s", median <= 5 and len(times) == len(outcomes))


def _found_at_length(where: Constraints, seeds: int) -> Row:
    """At a fixed length the first case fails already, and there is nothing to shrink: only finding is measured."""
    outcomes = list(_outcomes(where, seeds))
    found = [outcome for outcome in outcomes if outcome.failure is not None]
    slowest = max(outcome.seconds_to_failure for outcome in found)
    measured = f"{len(found)} of {len(outcomes)}, each within {slowest:.1f} s"
    return Row("mutants found with 128K histories, window 4096 or none", measured, "all", len(found) == len(outcomes))


def _outcomes(where: Constraints, seeds: int) -> Iterator[Outcome]:
    target = load_target("sim", None)
    axes = {axis for box in where.boxes for axis in box}
    for component in load_components([]):
        for item in select_implementations([component], []):
            constraints = item.constraints.within(where)
            if item.wrong is None or not constraints or not axes <= set(component.axes):
                continue
            job = Job(Subject(component, item, target), EQUIVALENCE, constraints)
            yield from (run_job(job, Budget(seed=seed)) for seed in range(seeds))
