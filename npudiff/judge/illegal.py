"""That an implementation which checks its inputs refuses illegal ones, and neither hangs nor writes elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from npudiff.judge.compare import compare
from npudiff.judge.memory import require_right
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import (
    Comparison,
    ImplementationRaised,
    NotApplicable,
    OutputComparison,
    Property,
    Subject,
)
from npudiff.model.faults import Kind, RemoteError
from npudiff.model.fingerprint import InputsChanged
from npudiff.model.illegal import illegal_inputs
from npudiff.model.red_zones import NoZones, WroteOutside, in_red_zones

_OWN = (WroteOutside.__name__, InputsChanged.__name__)
"""Exceptions that say what a call did, and refuse nothing."""


def _refused(subject: Subject, case: AnyCase) -> Comparison:
    """Give inputs in which one thing is wrong, one after the other, and tell all that are taken and not right."""
    inputs = subject.component.inputs(case)
    require_right(subject, inputs, subject.expected(inputs))
    guarded = replace(subject, implementation=in_red_zones(subject.implementation))
    judged, wrong = 0, list[tuple[str, Comparison]]()
    for illegal, changed in illegal_inputs(subject.component.illegal, inputs):
        try:
            outputs = guarded.run(changed)
        except ImplementationRaised as error:
            judged += _is_refusal(error, illegal.what)
            continue
        except NotApplicable:
            continue
        judged += 1
        compared = _answered(subject, illegal.what, None if illegal.no_answer else changed, outputs)
        if not compared.holds:
            wrong.append((illegal.what, compared))
    if not judged:
        raise NotApplicable("no illegal inputs of the case could be judged")
    if wrong:
        return _told(wrong)
    return Comparison((), "illegal inputs are refused")


def _told(wrong: Sequence[tuple[str, Comparison]]) -> Comparison:
    """Return the first answer that is wrong, and name everything of which one is."""
    first = wrong[0][1]
    if len(wrong) == 1:
        return first
    kinds = ", ".join(what for what, _ in wrong)
    output = replace(first.worst_output, problem=f"answers that are wrong, given illegal inputs: {kinds}")
    return Comparison((output,), f"given illegal inputs, such as {wrong[0][0]}")


class NotRefused(Exception):
    """What illegal inputs led to is no refusal."""


def _is_refusal(error: ImplementationRaised, what: str) -> bool:
    """Whether an exception refuses the inputs; False where the call could not be made between red zones.

    What is no refusal is raised again: a fault of the device, memory that was written, or an end of the process.
    """
    cause = error.__cause__ or error
    said = RemoteError.of(cause)
    clean = said.kind in (Kind.RAISED, Kind.REJECTED) and said.name not in _OWN and isinstance(cause, Exception)
    if said.name == NoZones.__name__:
        return False
    if clean:
        return True
    told = NotRefused(f"given {what}: {said}").with_traceback(cause.__traceback__)
    raise ImplementationRaised(str(told)) from told


def _answered(subject: Subject, what: str, inputs: AnyInputs | None, outputs: Mapping[str, torch.Tensor]) -> Comparison:
    """Compare the answer to illegal inputs with the reference's, if it has one; where there is none it has to raise."""
    wrong = f"an answer, given {what}; the inputs are illegal, and have to be refused"
    first, tensor = next(iter(outputs.items()))
    refusable = Comparison((OutputComparison(first, wrong, actual=tensor),), f"given {what}")
    if inputs is None:
        return refusable
    try:
        expected = subject.expected(inputs)
    except Exception:  # noqa: BLE001 - whatever the reference says of inputs that are none
        return refusable
    return compare(expected, outputs, f"given {what}, of which the reference has a right answer")


ILLEGAL_IS_REFUSED = Property(
    "illegal_is_refused",
    "inputs of which one thing is illegal raise an exception, or get the right answer",
    _refused,
    example_ratio=0.1,
)
