"""Cases in which every term of a bound is seen: drawn, chosen so that there are few, and added to the recorded ones.

``python -m benchmarks.covering_cases COMPONENT...`` looks for places (``benchmarks.loosened_bounds``) that no recorded
case of the component sees well, draws cases of everything that is implemented, and adds the fewest that see them. Cases
that are recorded already stay.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed

from benchmarks.loosened_bounds import FACTOR, Bounds, effects, places_of
from benchmarks.recorded_bounds import Recorded, bounds_of, measured, read, subjects_of, write
from npudiff.model.component import Component
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import component_names, load_component

WELL = 3.0
"""Change of a bound, in tolerances, that is asked for where a case can be found: other machines differ."""

NEAR = 0.4
"""Part of a bound that correct chains should come to in some case."""

MEASURED = 40
"""Drawn cases that are run by everything that is implemented, to find one where they come nearer."""

MOST_SECONDS = 0.03
"""What the reference of a case may take."""


def drawn(component: Component, constraints: Constraints, count: int, seed: int) -> list[Any]:
    """Return cases as a run draws them."""
    found: list[Any] = []

    @with_seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(component.strategy(constraints))
    def collect(case: Any) -> None:  # noqa: ANN401 - of any component
        found.append(case)

    collect()
    return found


def candidates(component: Component, count: int, seed: int) -> Iterator[tuple[Any, tuple[Any, Bounds]]]:
    """Yield drawn cases that cost little, with inputs and bounds; the smallest come first."""
    cases = [case for subject in subjects_of(component)
             for case in drawn(component, subject.implementation.constraints, count, seed)]  # fmt: skip
    found = []
    for case in dict.fromkeys(cases):
        inputs = component.inputs(case)
        started = time.perf_counter()
        bounds = bounds_of(component.reference(inputs))
        taken = time.perf_counter() - started
        if taken < MOST_SECONDS:
            found.append((taken, case, (inputs, bounds)))
    found.sort(key=lambda one: one[0])
    yield from ((case, ready) for _, case, ready in found)


def cover(name: str, kept: list[Recorded], count: int, seed: int) -> list[Recorded]:
    """Return cases that see places of a component which those that are kept do not see well."""
    component = load_component(name)
    known = [(component.inputs(one.case), bounds_of(component.reference(component.inputs(one.case)))) for one in kept]
    missing = {}
    pool = list(candidates(component, count, seed))
    for place in places_of(name):
        already = max(effects(component, place, FACTOR, known), default=0.0)
        if already >= WELL:
            continue
        changes = effects(component, place, FACTOR, [ready for _, ready in pool])
        best = min(WELL, max(changes, default=0.0))
        if best > max(1.0, 1.5 * already):
            missing[place] = {index for index, change in enumerate(changes) if change >= 0.95 * best}
    added: list[Recorded] = []
    while missing:
        index = max(range(len(pool)), key=lambda one: (sum(one in seen for seen in missing.values()), -one))
        added.append(measured(component, pool[index][0]))
        missing = {place: seen for place, seen in missing.items() if index not in seen}
    return [*added, *_nearest(component, [*kept, *added], [case for case, _ in pool])]


def _nearest(component: Component, kept: list[Recorded], cases: list[Any]) -> list[Recorded]:
    """Cases in which correct chains come nearest to the bounds of outputs that no kept case comes near to."""
    near: dict[str, float] = {}
    for one in kept:
        for output, ratio in one.reached.items():
            near[output] = max(near.get(output, 0.0), ratio)
    far = {output for one in kept for output, summary in one.bounds.items() if summary.most and near.get(output, 0.0) < NEAR}
    added: list[Recorded] = []
    if far:
        measurements = [measured(component, case) for case in cases[:: max(1, len(cases) // MEASURED)]]
        for output in sorted(far):
            best = max(measurements, key=lambda one: one.reached.get(output, 0.0))
            if best.reached.get(output, 0.0) > 1.5 * near.get(output, 0.0) and best not in added:
                added.append(best)
    return added


def main() -> int:
    """Find cases and record them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.covering_cases", description=__doc__)
    parser.add_argument("components", nargs="+", choices=component_names())
    parser.add_argument("--count", type=int, default=30, help="cases that are drawn for each implementation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.components:
        recorded = read()
        started = time.perf_counter()
        added = cover(name, recorded.get(name, []), options.count, options.seed)
        write({**recorded, name: [*recorded.get(name, []), *added]})
        print(f"{name}: {len(added)} cases more, in {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
