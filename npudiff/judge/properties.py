"""What must hold of every implementation: equivalence with the reference, and independence of earlier calls."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.derived_cases import grown, longer, same_size, shrunk
from npudiff.judge.compare import compare, same_bits
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Comparison, Component, ImplementationRaised, NotApplicable, Property, Subject
from npudiff.model.implementation import Implementation


def _calls_are_independent(subject: Subject, case: AnyCase) -> Comparison:
    """Call with the case alone; then one object with less, as many that are longer, as much, the case, more, the case.

    All answers to the case must have the same bits. What was captured for another batch of its size, made for a
    smaller one, or kept from the longest, shows in the second, and what a larger batch left behind shows in the third.
    """
    live, component = subject.fresh(), subject.component
    others = (
        shrunk(subject, case),
        *longer(subject, case),
        same_size(subject, case),
    )
    before = [other for other in others if other is not None]
    after = grown(subject, case)
    if not before and after is None:
        raise NotApplicable("no other case can be derived from this one")
    inputs = component.inputs(case)
    alone = subject.fresh().run(inputs)
    for other in before:
        _call(live, other)
    last = f"after {component.describe(before[-1])}" if before else "again"
    second = same_bits(alone, live.run(inputs), f"the same inputs alone, and {last}")
    if not second.holds or after is None:
        return second
    _call(live, after)
    return same_bits(alone, live.run(inputs), f"the same inputs alone, and after {component.describe(after)}")


def _call(live: Subject, other: AnyCase) -> None:
    """Make another call. What it raises says nothing of the case; equivalence is there for cases by themselves."""
    with contextlib.suppress(ImplementationRaised):
        live.run(live.component.inputs(other))


CALL_INDEPENDENCE = Property(
    "earlier_calls_change_nothing",
    "calls before, with less, as much and more, change no bit of an answer",
    _calls_are_independent,
    example_ratio=0.05,
)


STATEFUL_EXAMPLE_RATIO = 0.25
"""Examples of ``CALL_INDEPENDENCE`` per example of equivalence, of a stateful implementation."""


def _equivalent(subject: Subject, case: AnyCase) -> Comparison:
    inputs = subject.component.inputs(case)
    return compare(subject.expected(inputs), subject.run(inputs))


EQUIVALENCE = Property(
    "equivalence",
    "every element is within the reference's bound",
    _equivalent,
    example_ratio=1.0,
)


def check(prop: Property, subject: Subject, case: AnyCase) -> Comparison:
    """Check a property.

    A relation counts rows, looks things up, and puts runs together, which fails where outputs have another shape than
    they must have, or hold indices that lead nowhere. Then the output that is wrong is the answer. Where every output
    is right, what is raised is a defect.

    Raises
    ------
    ImplementationRaised, NotApplicable
        As of ``Property.check``.
    """
    runs: list[tuple[AnyInputs, Mapping[str, torch.Tensor]]] = []
    watched = replace(subject, observer=lambda inputs, outputs: runs.append((inputs, outputs)))
    try:
        return prop.check(watched, case)
    except (ImplementationRaised, NotApplicable):
        raise
    except Exception:
        for inputs, outputs in runs:
            comparison = compare(subject.expected(inputs), outputs, f"one run of {prop.name}")
            if not comparison.holds:
                return comparison
        raise


def properties_of(component: Component) -> tuple[Property, ...]:
    """Return everything that must hold for each implementation of a component: what it says itself, and what all share.

    A component with history is tested by nothing but sequences of calls already.
    """
    shared = () if component.history is not None else (CALL_INDEPENDENCE,)
    return (EQUIVALENCE, *component.relations, *shared)


def property_of_mutant(item: Implementation) -> Property:
    """Return the property by which an implementation that is wrong on purpose has to be found."""
    return EQUIVALENCE if item.factory is None else CALL_INDEPENDENCE
