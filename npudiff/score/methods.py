"""The methods of testing that the score compares: the cases of each, and its pass criterion.

Each is a job of the same engine: the component with other cases or ordinary inputs, and a property that judges outputs
in another way. Time and cases therefore mean the same for all of them. What keeps something between calls is opened
once for a whole test, as tests do; ours opens it for each case, so that a finding fails again by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from npudiff.judge.compare import compare
from npudiff.judge.criteria import COSINE, MIXED, SINGLE, published_verdicts
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.anything import AnyCase
from npudiff.model.component import Comparison, Component, OutputComparison, Property, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Job
from npudiff.score.cases import fixed_cases, random_cases

CLOSE = 1e-2
"""Relative and absolute tolerance that tests of backends have most often."""


@dataclass(frozen=True)
class Method:
    """A way of testing."""

    name: str
    summary: str
    """Name in tables, and one line about it."""
    job: Callable[[Subject, Constraints, int, int], Job | None]
    """Subject, constraints, seed and number of cases to a job; None where the method has no case for them."""
    ours: bool = False
    """Whether it is npudiff's own, which tries relations and shrinks."""


def _judged(subject: Subject, case: AnyCase, verdict: Callable[[OutputComparison], str | None]) -> Comparison:
    """Compare with the reference, and let somebody else say what is wrong."""
    inputs = subject.component.inputs(case)
    comparison = compare(subject.expected(inputs), subject.run(inputs))
    outputs = (
        output if output.problem is not None else OutputComparison(output.name, verdict(output))
        for output in comparison.outputs
    )
    return Comparison(tuple(outputs))


def _not_close(output: OutputComparison) -> str | None:
    """Say that an output is not close, as ``torch.testing.assert_close`` would; integers have to be equal."""
    if output.actual is None or output.value is None or output.bound is None:
        return None
    specified = ~torch.isposinf(output.bound.expand_as(output.actual))
    actual, value = output.actual[specified], output.value.expand_as(output.actual)[specified]
    tolerance = CLOSE if output.actual.is_floating_point() else 0.0
    close = torch.isclose(actual.double(), value.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    return None if bool(close.all()) else "not close"


def _published(criterion: str, output: OutputComparison) -> str | None:
    """Say that a published criterion fails; of outputs that it says nothing about, that they differ."""
    verdicts = [verdict for verdict in published_verdicts(output) if verdict.criterion == criterion]
    if verdicts:
        return None if all(verdict.passes for verdict in verdicts) else criterion
    return "differs" if output.exact and output.worst > 1 else None


def _property(name: str, summary: str, verdict: Callable[[OutputComparison], str | None]) -> Property:
    return Property(name, summary, lambda subject, case: _judged(subject, case, verdict), example_ratio=1.0)


ALLCLOSE = _property("allclose", f"every element is within {CLOSE:g} of the reference", _not_close)
PUBLISHED = {
    criterion: _property(criterion, f"{criterion} passes", partial(_published, criterion))
    for criterion in (MIXED, SINGLE, COSINE)
}


def _with_cases(component: Component, cases: tuple[Any, ...]) -> Component:
    """Return a component whose cases are given, and whose inputs are ordinary."""
    if component.baselines is None:
        raise ValueError(f"{component.name} does not say what is ordinary")
    make, inputs = component.baselines.inputs, component.inputs
    return replace(component, strategy=lambda _: st.sampled_from(cases), inputs=lambda case: make(inputs(case)))


def _drawn(prop: Property, subject: Subject, constraints: Constraints, seed: int, count: int) -> Job | None:
    """Our cases, judged by a property; where a trace is the case, only its equivalence can be judged."""
    del seed, count
    if subject.component.history is not None and prop is not EQUIVALENCE:
        return None
    return Job(subject if prop is EQUIVALENCE else subject.fresh(), prop, constraints)


def _fixed(prop: Property, subject: Subject, constraints: Constraints, seed: int, count: int) -> Job | None:
    del seed, count
    return _given(prop, subject, constraints, fixed_cases(subject.component, constraints))


def _random(prop: Property, subject: Subject, constraints: Constraints, seed: int, count: int) -> Job | None:
    return _given(prop, subject, constraints, random_cases(subject.component, constraints, seed, count))


def _given(prop: Property, subject: Subject, constraints: Constraints, cases: tuple[Any, ...]) -> Job | None:
    if not cases:
        return None
    return Job(replace(subject.fresh(), component=_with_cases(subject.component, cases)), prop, constraints)


METHODS = (
    Method("npudiff", "our cases, our bounds, relations, shrinking", partial(_drawn, EQUIVALENCE), ours=True),
    Method("fixed shapes", f"round shapes, plain data, allclose {CLOSE:g}", partial(_fixed, ALLCLOSE)),
    Method("random shapes", f"random shapes, plain data, allclose {CLOSE:g}", partial(_random, ALLCLOSE)),
    Method("random, our bounds", "random shapes, plain data, judged by our bounds", partial(_random, EQUIVALENCE)),
    Method("ours, allclose", f"our cases, allclose {CLOSE:g}", partial(_drawn, ALLCLOSE)),
    Method("ours, CANN mixed", f"our cases, judged by the {MIXED}", partial(_drawn, PUBLISHED[MIXED])),
    Method("ours, CANN single", f"our cases, judged by the {SINGLE}", partial(_drawn, PUBLISHED[SINGLE])),
    Method("ours, cosine", "our cases, judged by the cosine of whole tensors", partial(_drawn, PUBLISHED[COSINE])),
)
"""All methods, npudiff's own first."""
