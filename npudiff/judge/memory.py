"""That an implementation keeps to its memory: it runs between red zones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from npudiff.judge.compare import compare
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Comparison, ExpectedOutput, ImplementationRaised, NotApplicable, Property, Subject
from npudiff.model.red_zones import NoZones, in_red_zones


def _stays_within(subject: Subject, case: AnyCase) -> Comparison:
    inputs = subject.component.inputs(case)
    expected = subject.expected(inputs)
    guarded = replace(subject, implementation=in_red_zones(subject.implementation))
    try:
        outputs = guarded.run(inputs)
    except ImplementationRaised as error:
        if isinstance(error.__cause__, NoZones):
            raise NotApplicable(str(error.__cause__)) from error
        require_right(subject, inputs, expected)
        raise
    compared = compare(expected, outputs, "what nobody has written, and what lies beyond a tensor, is NaN")
    if not compared.holds:
        require_right(subject, inputs, expected)
    return compared


def require_right(subject: Subject, inputs: AnyInputs, expected: Mapping[str, ExpectedOutput]) -> None:
    """Raise ``NotApplicable`` where a plain call is not right, either: that is what equivalence says."""
    try:
        right = compare(expected, subject.run(inputs)).holds
    except ImplementationRaised:
        right = False
    if not right:
        raise NotApplicable("a plain call of the same inputs is wrong as well")


STAYS_WITHIN = Property(
    "stays_within_its_memory",
    "nothing is written beyond a tensor, and nothing is read that nobody has written",
    _stays_within,
    example_ratio=0.05,
)
