"""Cases of ordinary tests: all combinations of round values, and a loop over random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import Unsatisfiable

from npudiff.model.anything import AnyCase
from npudiff.model.baselines import BaselineSpec
from npudiff.model.component import Component
from npudiff.model.constraints import Box, Constraints, allows

MOST_FIXED = 16
"""Fixed shapes that a test has at most."""


def fixed_cases(component: Component, constraints: Constraints) -> tuple[Any, ...]:
    """Return the cases of a test with fixed shapes, as far as an implementation supports them."""
    ordinary = component.baselines
    if ordinary is None:
        return ()
    fixed = supported(ordinary.fixed, constraints)
    combinations = itertools.islice(itertools.product(*fixed.values()), MOST_FIXED)
    boxes = ({axis: (value,) for axis, value in zip(fixed, values, strict=True)} for values in combinations)
    return tuple(_drawn(component, constraints, ordinary, boxes, 0))


def random_cases(component: Component, constraints: Constraints, seed: int, count: int) -> tuple[Any, ...]:
    """Return cases of a loop over random shapes, as far as an implementation supports them."""
    ordinary = component.baselines
    if ordinary is None:
        return ()
    random = Random(seed)  # noqa: S311 - a test's own loop
    sizes = {axis: tuple(values) for axis, values in supported(ordinary.sizes, constraints).items()}
    boxes = ({axis: (random.choice(values),) for axis, values in sizes.items()} for _ in range(4 * count))
    return tuple(itertools.islice(_drawn(component, constraints, ordinary, boxes, seed), count))


def supported(box: Box, constraints: Constraints) -> dict[str, Sequence[Any]]:
    """Return the values of each axis that an implementation supports; an axis with none of them is left free.

    A test of a decode has query length 1, and one of an operator for NZ pages has NZ pages.
    """
    found = {
        axis: [value for value in values if any(allows(own.get(axis, (value,)), value) for own in constraints.boxes)]
        for axis, values in box.items()
    }
    return {axis: values for axis, values in found.items() if values}


def _drawn(
    component: Component, constraints: Constraints, ordinary: BaselineSpec, boxes: Iterator[Box], seed: int
) -> Iterator[Any]:
    """Yield a case within each box, where the implementation supports one."""
    plain = Constraints((supported(ordinary.plain, constraints),))
    for number, box in enumerate(boxes):
        within = constraints.within(plain).within(Constraints((box,)))
        if within:
            case = _one(component, within, seed + number)
            if case is not None:
                yield case


def _one(component: Component, constraints: Constraints, seed: int) -> AnyCase | None:
    """Draw one case; not the first, which is always the simplest."""
    found: list[Any] = []

    @with_seed(seed)
    @settings(
        max_examples=2,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(component.strategy(constraints))
    def collect(case: AnyCase) -> None:
        found.append(case)

    try:
        collect()
    except Unsatisfiable:
        return None
    return found[-1] if found else None
