"""From the outcome of a job to a finding: what was seen, where, and what it looks like."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from typing import Any

import torch

from npudiff.findings.finding import Finding
from npudiff.judge.criteria import published_verdicts
from npudiff.judge.misplaced import explain_misplaced
from npudiff.judge.pattern import describe_pattern, worst_element, worst_gain
from npudiff.model.anything import AnyInputs
from npudiff.model.codec import loads, to_plain
from npudiff.model.comparison import OutputComparison
from npudiff.model.component import Component
from npudiff.model.outcome import Failure, Outcome, Poisoning, Verdict
from npudiff.model.version import VERSION
from npudiff.run.isolation.faults import RemoteError
from npudiff.text import printable

POISONS = "poisons the device"
"""Verdict of a case that holds, and after which another one fails that is right by itself."""

AFTER_OTHERS = "fails after other cases only"
"""Verdict of a case that is right by itself, and failed after others of which none could be found guilty."""


def findings_of(outcome: Outcome) -> list[tuple[Finding, Failure | None]]:
    """Describe all that an outcome has to report: its failure, and cases that spoiled the device for others."""
    failed = [(finding_of(outcome), outcome.failure)] if outcome.failure is not None else []
    poisonings = sorted(outcome.poisonings, key=lambda one: (not one.case, len(one.case) + len(one.victim)))
    return [*failed, *((_poisoning(outcome, one), None) for one in poisonings[:1])]


def _poisoning(outcome: Outcome, poisoning: Poisoning) -> Finding:
    """Describe the smallest case that poisons, or one that only fails after others if it was not found which."""
    subject = outcome.job.subject
    culprit, victim = (
        loads(subject.component.case_type, text) if text else None for text in (poisoning.case, poisoning.victim)
    )
    detail = {
        "line": subject.component.describe(victim if culprit is None else culprit),
        "error": printable(poisoning.error)[:2000],
        "then": "" if culprit is None else subject.component.describe(victim),
        "victim": {} if culprit is None else _plain_case(victim),
        "examples_to_finding": outcome.cases,
        "flaky": culprit is None,
        "more": len(outcome.poisonings) - 1,
    }
    verdict = POISONS if culprit is not None else AFTER_OTHERS
    return _described(outcome, victim if culprit is None else culprit, verdict, detail)


def finding_of(outcome: Outcome) -> Finding:
    """Describe the failure of an outcome.

    Raises
    ------
    ValueError
        If the outcome has no failure.
    """
    failure = outcome.failure
    if failure is None:
        raise ValueError(f"{outcome.job.name} has no failure")
    return _described(outcome, failure.case, _verdict_of(failure), _detail(outcome, failure))


def _verdict_of(failure: Failure) -> str:
    """``wrong value``, ``exception``, or what the case did to the process or the device."""
    if failure.error is None:
        return Verdict.WRONG.value
    return failure.error.kind.value if isinstance(failure.error, RemoteError) else Verdict.RAISED.value


def _described(outcome: Outcome, case: object, verdict: str, detail: Mapping[str, Any]) -> Finding:
    subject = outcome.job.subject
    return Finding(
        component=subject.component.name,
        implementation=subject.implementation.name,
        target=subject.target.name,
        cann=subject.target.cann,
        property_name=outcome.job.prop.name,
        verdict=verdict,
        case=_plain_case(case),
        detail=detail,
        environment=environment(),
        options=f"--impl {shlex.quote(selector)}" if (selector := subject.implementation.selector) else "",
    )


def _plain_case(case: object) -> dict[str, Any]:
    plain = to_plain(case)
    if not isinstance(plain, dict):
        raise TypeError(f"a case must be a dataclass, got {type(case).__name__}")
    return plain


def environment() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import hypothesis  # noqa: PLC0415 - only its version is wanted

    return {
        "npudiff": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hypothesis": hypothesis.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _detail(outcome: Outcome, failure: Failure) -> dict[str, Any]:
    component = outcome.job.subject.component
    detail: dict[str, Any] = {
        "line": component.describe(failure.case),
        "examples_to_finding": outcome.cases,
        "remembered": outcome.remembered,
        "flaky": outcome.flaky,
        "repeated": list(outcome.repeated),
        "alone": list(outcome.alone),
        "first": _first(outcome),
    }
    if failure.error is not None:
        detail["error"] = _error_text(failure.error)
    if failure.comparison is None:
        return detail
    output = failure.comparison.worst_output
    detail["context"] = failure.comparison.context
    detail["output"] = output.name
    detail["also_wrong"] = {
        other.name: other.worst for other in failure.comparison.outputs if other is not output and other.worst > 1
    }
    detail["worst_ratio"] = output.worst
    if output.problem is not None:
        detail["problem"] = output.problem
        return detail
    inputs = component.inputs(failure.case)
    coordinates = coordinates_of(component, inputs, output)
    if output.only_gain:
        detail["gain"] = worst_gain(output, coordinates)
    detail["where"] = worst_element(output, coordinates)
    return detail | _described_output(output, coordinates, inputs)


def _described_output(
    output: OutputComparison,
    coordinates: Mapping[str, torch.Tensor],
    inputs: AnyInputs,
) -> dict[str, Any]:
    """Say in words where it is wrong, and what others would say; a defect in that is told, and costs no finding."""
    try:
        return {
            "pattern": describe_pattern(output, coordinates),
            "instead": explain_misplaced(output, coordinates, getattr(inputs, output.name, None)),
            "published_criteria": [to_plain(verdict) for verdict in published_verdicts(output)],
        }
    except Exception as error:  # noqa: BLE001 - whatever it is, the finding is worth more
        return {"pattern": [f"npudiff could not describe it, please report: {_error_text(error)}"]}


def _error_text(error: BaseException) -> str:
    """The exception's type and text, with line breaks marked: device errors have several lines."""
    text = str(error) if isinstance(error, RemoteError) else f"{type(error).__name__}: {error}"
    lines = text[:2000].splitlines()
    return " | ".join(printable(line.strip()) for line in lines if line.strip())


def _first(outcome: Outcome) -> dict[str, Any]:
    """The failing case as it was drawn; being larger, it shows the pattern better than the smallest one."""
    failure, component = outcome.first_failure, outcome.job.subject.component
    if failure is None or outcome.failure is None or failure.case == outcome.failure.case:
        return {}
    first: dict[str, Any] = {"line": component.describe(failure.case)}
    if failure.comparison is not None and failure.comparison.worst_output.problem is None:
        output = failure.comparison.worst_output
        inputs = component.inputs(failure.case)
        coordinates = coordinates_of(component, inputs, output)
        first |= _described_output(output, coordinates, inputs)
    return first


def coordinates_of(component: Component, inputs: AnyInputs, output: OutputComparison) -> Mapping[str, torch.Tensor]:
    """Where each element is, in the component's words; by index where a relation compared other rows."""
    named = component.coordinates(inputs, output.name)
    if all(_broadcasts(values, output.ratio) for values in named.values()):
        return named
    sizes = output.ratio.shape if output.ratio is not None else ()
    shapes = [[-1 if place == axis else 1 for place in range(len(sizes))] for axis in range(len(sizes))]
    return {f"index {axis}": torch.arange(size).reshape(shapes[axis]) for axis, size in enumerate(sizes)}


def _broadcasts(values: torch.Tensor, ratio: torch.Tensor | None) -> bool:
    """A relation may compare some rows only; then coordinates of all rows say nothing about them."""
    if ratio is None or values.dim() != ratio.dim():
        return False
    return all(have in (1, want) for have, want in zip(values.shape, ratio.shape, strict=True))
