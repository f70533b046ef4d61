"""That an implementation keeps to its memory: it runs between red zones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from npudiff.judge.compare import compare
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Comparison, ExpectedOutput, ImplementationRaised, NotApplicable, Property, Subject
from npudiff.model.faults import RemoteError
from npudiff.model.red_zones import ONES, NoZones, WroteOutside, in_red_zones


def _stays_within(subject: Subject, case: AnyCase) -> Comparison:
    """Run between zones; what is wrong there and without them as well is left to equivalence.

    A write beyond a tensor is told whatever the answer is, and no call is made after it that nothing guards.
    """
    inputs = subject.component.inputs(case)
    expected = subject.expected(inputs)
    compared, raised = None, None
    try:
        outputs = _between(subject, ONES).run(inputs)
        compared = compare(expected, outputs, "what nobody has written, and what lies beyond a tensor, is NaN")
    except ImplementationRaised as error:
        raised = error
    name = "" if raised is None else name_of_cause(raised)
    if name == NoZones.__name__:
        raise NotApplicable(str(raised)) from raised
    wrong = raised is not None or (compared is not None and not compared.holds)
    if wrong and name != WroteOutside.__name__:
        require_right(subject, inputs, expected)
    if compared is None:
        assert raised is not None  # noqa: S101 - there was an answer, or an exception
        raise raised
    return compared


def _between(subject: Subject, fill: int) -> Subject:
    return replace(subject, implementation=in_red_zones(subject.implementation, fill))


def name_of_cause(error: ImplementationRaised) -> str:
    """Return the type of what an implementation raised, here or in a process of its own."""
    return RemoteError.of(error.__cause__ or error).name


def require_right(subject: Subject, inputs: AnyInputs, expected: Mapping[str, ExpectedOutput]) -> None:
    """Raise ``NotApplicable`` where calls without red zones are wrong, either: that is what equivalence says.

    What reads memory that nobody has written may be right or wrong by chance, so that it may be zeros as well.
    """
    if not any(_is_right(one, inputs, expected) for one in (_between(subject, 0), subject)):
        raise NotApplicable("a plain call of the same inputs is wrong as well")


def _is_right(subject: Subject, inputs: AnyInputs, expected: Mapping[str, ExpectedOutput]) -> bool:
    try:
        return compare(expected, subject.run(inputs)).holds
    except ImplementationRaised:
        return False


STAYS_WITHIN = Property(
    "stays_within_its_memory",
    "nothing is written beyond a tensor, and nothing is read that nobody has written",
    _stays_within,
    example_ratio=0.05,
)
