"""The smallest failing case of an implementation, by trying every case of a space that is smaller.

Nothing here knows how cases are drawn: a space is written by hand, from what a case may be.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npudiff.judge.judge import property_of_mutant
from npudiff.model.component import Component, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation, Target
from npudiff.model.job import Job
from npudiff.run.engine import run_case
from npudiff.score.trials import elements

_FIRST_BOUND = 64
"""Cases are listed up to at least this size at first, and up to twice as much where none of them fails."""


@dataclass(frozen=True)
class Space:
    """Every case of a component that is looked at."""

    make: Callable[..., Any]
    """Makes a case of one value of each field, which are its keyword arguments; most often the case's own class."""
    free: Mapping[str, Sequence[Any]]
    """Fields whose values all are tried, whatever that does to the size."""
    rising: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Fields whose values come in an order in which a case never gets smaller, whatever the other fields are: after one
    that is too large, the rest is left out. So a range may go as far as the axis does."""


@dataclass(frozen=True)
class Smallest:
    """What was found: a case that fails, its size in elements of all inputs, and how many cases were run for it."""

    case: Any
    size: int
    tried: int


def size_of(component: Component, case: Any) -> int:
    """Return the elements of all input tensors of a case."""
    return elements(component.inputs(case))


def cases_up_to(component: Component, space: Space, at_most: int, within: Constraints) -> Iterator[tuple[int, Any]]:
    """Yield size and case of every legal case of a space within constraints that has no more elements than that.

    Raises
    ------
    AssertionError
        If a case is smaller than one that comes before it along a rising field: then something was left out.
    """
    first = {name: values[0] for name, values in space.rising.items()}
    for chosen in itertools.product(*space.free.values()):
        fixed = dict(zip(space.free, chosen, strict=True)) | first
        for size, case in _rising(component, space, fixed, tuple(space.rising), at_most):
            if _is_legal(component, case, within):
                yield size, case


def _rising(
    component: Component, space: Space, fixed: Mapping[str, Any], names: tuple[str, ...], at_most: int
) -> Iterator[tuple[int, Any]]:
    """Walk the fields that are left, with all behind the one at hand at their first values."""
    if not names:
        case = space.make(**fixed)
        size = size_of(component, case)
        if size <= at_most:
            yield size, case
        return
    before = 0
    for value in space.rising[names[0]]:
        here = {**fixed, names[0]: value}
        size = size_of(component, space.make(**here))
        assert size >= before, f"{names[0]} {value}: {size} elements after {before}, with {fixed}"
        before = size
        if size > at_most:
            return
        yield from _rising(component, space, here, names[1:], at_most)


def _is_legal(component: Component, case: Any, within: Constraints) -> bool:
    try:
        component.check_case(case)
    except ValueError:
        return False
    return within.reason_against(component.values(case)) is None


def smallest_failing(
    component: Component,
    item: Implementation,
    target: Target,
    space: Space,
    at_most: int,
    without: Callable[[Any], bool] = lambda _: False,
) -> Smallest | None:
    """Return the smallest case of a space that fails, or None if none of ``at_most`` elements or fewer does.

    Parameters
    ----------
    component, item, target : Component, Implementation, Target
        Who is tested: by equivalence, or by calls before it where the implementation keeps something.
    space : Space
        Which cases there are.
    at_most : int
        Elements of the largest case that is tried.
    without : callable
        Says of which cases nothing is asked.
    """
    job = Job(Subject(component, item, target), property_of_mutant(item), item.constraints)
    tried, above = 0, -1
    for bound in _bounds(at_most):
        listed = cases_up_to(component, space, bound, item.constraints)
        for size, case in sorted((pair for pair in listed if pair[0] > above), key=lambda pair: pair[0]):
            if without(case):
                continue
            tried += 1
            if run_case(job, case).failure is not None:
                return Smallest(case, size, tried)
        above = bound
    return None


def _bounds(at_most: int) -> Iterator[int]:
    halvings = max(0, min(3, (at_most // _FIRST_BOUND).bit_length() - 1))
    return (at_most >> times for times in range(halvings, -1, -1))


def check_rising(component: Component, space: Space, samples: int, furthest: int = 64) -> None:
    """Check in random places that cases do not get smaller along rising fields, whatever the others are.

    Values beyond the first ``furthest`` of a field are not asked, since such cases may be too large to build.

    Raises
    ------
    AssertionError
        With the field, if a case does.
    """
    source = random.Random(0)  # noqa: S311 - places to look at
    for _ in range(samples):
        place = {name: source.choice(values[:furthest]) for name, values in {**space.free, **space.rising}.items()}
        for name, values in space.rising.items():
            index = source.randrange(1, min(furthest, len(values))) if len(values) > 1 else 0
            less, more = ({**place, name: values[at]} for at in (max(0, index - 1), index))
            sizes = [size_of(component, space.make(**fields)) for fields in (less, more)]
            assert sizes[0] <= sizes[1], f"{name}: {sizes} elements at {less} and {more}"
