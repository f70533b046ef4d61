"""Cases in which every term of a bound is seen: drawn, chosen so that there are few, and added to the recorded ones.

``python -m benchmarks.covering_cases COMPONENT...`` looks for places (``benchmarks.loosened_bounds``) that no recorded
case of the component sees well, draws cases of everything that is implemented, and adds the fewest that see them. Cases
that are recorded already stay.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed

from benchmarks.loosened_bounds import FACTOR, Bounds, effects, places_of
from benchmarks.recorded_bounds import (
    REGIMES,
    Recorded,
    bounds_of,
    in_regime,
    measured,
    read,
    subjects_of,
    usual_values,
    write,
)
from npudiff.model.component import Component
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import component_names, load_component

WELL = 3.0
"""Change of a bound, in tolerances, that is asked for where a case can be found: other machines differ."""

NEAR = 0.4
"""Part of a bound that correct chains should come to in some case."""

MEASURED = 40
"""Drawn cases that are run by everything that is implemented, to find one where they come nearer."""


def drawn(component: Component, constraints: Constraints, count: int, seed: int) -> list[Any]:
    """Return cases as a run draws them."""
    found: list[Any] = []

    @with_seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(component.strategy(constraints))
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


@dataclass(frozen=True)
class Candidate:
    """A drawn case in a regime."""

    case: Any
    regime: str
    ready: tuple[Any, Bounds]
    """Inputs, and their bounds."""


def unusual(component: Component) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield axes with values that are drawn for those who ask for them only."""
    for name, value in usual_values(component.case_type).items():
        if name in component.axes:
            yield name, tuple(other for other in component.axes[name].legal if other != value)[:3]


def candidates(component: Component, count: int, seed: int, seconds: float) -> list[Candidate]:
    """Return drawn cases whose reference takes little time, in all regimes; the fastest come first."""
    own = [subject.implementation.constraints for subject in subjects_of(component)]
    where = [*own, *(own[0].within(Constraints.of({name: values})) for name, values in unusual(component))]
    cases = [case for constraints in where if constraints for case in drawn(component, constraints, count, seed)]
    found: list[tuple[float, Candidate]] = []
    for case, regime in itertools.product(dict.fromkeys(cases), REGIMES):
        started = time.perf_counter()
        try:
            inputs = in_regime(component.inputs(case), regime)
            bounds = bounds_of(component.reference(inputs))
        except (ValueError, RuntimeError, TypeError):
            continue  # the reference takes no such inputs
        taken = time.perf_counter() - started
        if taken < seconds:
            found.append((taken, Candidate(case, regime, (inputs, bounds))))
    found.sort(key=lambda pair: pair[0])
    return [candidate for _, candidate in found]


def cover(name: str, kept: list[Recorded], pool: list[Candidate], only: str = "") -> list[Recorded]:
    """Return cases that see places of a component which those that are kept do not see well.

    Of places whose names an expression matches; where it is given, nothing else is looked for.
    """
    component = load_component(name)
    known = [(one.inputs(component), one.bounds) for one in kept]
    missing = {}
    for place in (one for one in places_of(name) if re.search(only, one.name)):
        already = max(effects(component, place, FACTOR, known), default=0.0)
        if already >= WELL:
            continue
        changes = effects(component, place, FACTOR, [one.ready for one in pool])
        best = min(WELL, max(changes, default=0.0))
        if best > max(1.0, 1.5 * already):
            missing[place] = {index for index, change in enumerate(changes) if change >= 0.95 * best}
    added: list[Recorded] = []
    while missing:
        index = max(range(len(pool)), key=lambda one: (sum(one in seen for seen in missing.values()), -one))
        added.append(measured(component, pool[index].case, pool[index].regime))
        missing = {place: seen for place, seen in missing.items() if index not in seen}
    if not kept and not added:  # all of it is exact, and has to stay so
        added = [measured(component, pool[0].case)]
    return (
        added
        if only
        else [*added, *_nearest(component, [*kept, *added], [one.case for one in pool if one.regime == REGIMES[0]])]
    )


def _nearest(component: Component, kept: list[Recorded], cases: list[Any]) -> list[Recorded]:
    """Cases in which correct chains come nearest to the bounds of outputs that no kept case comes near to."""
    near: dict[str, float] = {}
    for one in kept:
        for output, ratio in one.reached.items():
            near[output] = max(near.get(output, 0.0), ratio)
    bounded = {output for one in kept for output, summary in one.bounds.items() if summary.most}
    far = {output for output in bounded if near.get(output, 0.0) < NEAR}
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
    parser.add_argument("--seconds", type=float, default=0.03, help="what a case may take")
    parser.add_argument("--only", metavar="REGEX", default="", help="see places whose names it matches")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.components:
        recorded = read()
        started = time.perf_counter()
        pool = candidates(load_component(name), options.count, options.seed, options.seconds)
        added = cover(name, recorded.get(name, []), pool, options.only)
        write({**recorded, name: [*recorded.get(name, []), *added]})
        print(f"{name}: {len(added)} cases more, in {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
