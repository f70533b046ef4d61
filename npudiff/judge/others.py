"""The other ways in which a backend computes the same: which of them take a case, and whether they agree.

A backend has a path for a card and a plain one, one for graphs and one without, one for a prefill and one for a decode.
Where two of them differ, one is wrong, whatever the contract says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from npudiff.draw.options import with_options
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.judge.graphs import REPLAYS_AS_EAGER
from npudiff.judge.illegal import ILLEGAL_IS_REFUSED
from npudiff.judge.judge import properties_of
from npudiff.model.anything import AnyCase
from npudiff.model.component import (
    Comparison,
    Component,
    ImplementationRaised,
    NotApplicable,
    Property,
    Subject,
)
from npudiff.model.implementation import Implementation


def others_of(subject: Subject, case: AnyCase) -> Iterator[tuple[Subject, AnyCase]]:
    """Yield the other ways that take a case, and the case as each of them has it: its own options have usual values."""
    component = subject.component
    given = {field.name: getattr(case, field.name) for field in dataclasses.fields(case) if field.init}
    for other in subject.implementation.others:
        if any(name in given and given[name] not in values for name, values in other.options.items()):
            continue
        added = {name: values for name, values in other.options.items() if name not in given}
        extended = with_options(component, added)
        there = dataclasses.replace(subject, component=extended, implementation=other, observer=None)
        its = case if extended is component else extended.case_type(**given)
        if there.reason_against(its) is None and not (other.requires and other.requires()):
            yield there, its


def _ways_agree(subject: Subject, case: AnyCase) -> Comparison:
    """Run another way of the backend on the same inputs: both may be off by the bound. What it raises is its own."""
    inputs = subject.component.inputs(case)
    mine = subject.run(inputs)
    bounds = bounds_of(subject.expected(inputs))
    worst: Comparison | None = None
    for other, its in others_of(subject, case):
        try:
            answer = other.run(other.component.inputs(its))
        except (ImplementationRaised, NotApplicable):
            continue
        shared = [name for name in mine if name in answer]
        compared = compare_runs(
            bounds,
            {name: answer[name] for name in shared},
            {name: mine[name] for name in shared},
            f"{other.implementation.name} on the same inputs, as what is expected",
        )
        if not compared.holds:
            return compared
        worst = compared if worst is None or compared.worst > worst.worst else worst
    if worst is None:
        raise NotApplicable("no other way of the backend takes the case")
    return worst


WAYS_AGREE = Property(
    "ways_of_the_backend_agree",
    "another way of the same backend, plain or for a device, gives the same",
    _ways_agree,
    example_ratio=0.15,
)


def properties_with_others(component: Component, item: Implementation) -> tuple[Property, ...]:
    """Return what must hold of an implementation: ``properties_of``, and what follows from what it says of itself."""
    more = [WAYS_AGREE] if item.others else []
    more += [ILLEGAL_IS_REFUSED] if item.checks else []
    more += [REPLAYS_AS_EAGER] if item.graph else []
    return (*properties_of(component), *(more if component.history is None else ()))
