"""What must hold of every implementation: equivalence with the reference, and independence of earlier calls."""

from __future__ import annotations

from typing import Any

from npudiff.judge.compare import compare
from npudiff.judge.stateless import earlier_calls
from npudiff.judge.trace import TraceExecutor
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.implementation import Implementation

CALL_INDEPENDENCE = Property(
    "earlier_calls_change_nothing",
    "calls before, with less, as much and more, change no bit of an answer",
    earlier_calls,
    example_ratio=0.05,
)


STATEFUL_EXAMPLE_RATIO = 0.25
"""Examples of ``CALL_INDEPENDENCE`` per example of equivalence, of a stateful implementation."""


def _equivalent(subject: Subject, case: Any) -> Comparison:  # noqa: ANN401 - a case of any component
    if subject.component.history is not None:
        return TraceExecutor(subject).run_to(case)
    inputs = subject.component.inputs(case)
    return compare(subject.expected(inputs), subject.run(inputs))


EQUIVALENCE = Property(
    "equivalence",
    "every element is within the reference's bound",
    _equivalent,
    example_ratio=1.0,
)


def properties_of(component: Component) -> tuple[Property, ...]:
    """Return everything that must hold for each implementation of a component: what it says itself, and what all share.

    A component with history is tested by nothing but sequences of calls already.
    """
    shared = () if component.history is not None else (CALL_INDEPENDENCE,)
    return (EQUIVALENCE, *component.relations, *shared)


def property_of_mutant(item: Implementation) -> Property:
    """Return the property by which an implementation that is wrong on purpose has to be found."""
    return EQUIVALENCE if item.factory is None else CALL_INDEPENDENCE
