"""A finding as a script that needs neither npudiff nor anything else but torch and torch_npu."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save

from npudiff.findings.finding import (
    MAX_REPRODUCE_TENSORS,
    MAX_SCRIPT_BYTES,
    POISONS,
    REPRODUCE_TENSORS,
    Finding,
    Script,
)
from npudiff.findings.reproduce.script import Recording, script_of
from npudiff.findings.reproduce.session import needs_process, record, record_apart
from npudiff.findings.reproduce.tape import Tape
from npudiff.model.codec import from_plain
from npudiff.model.job import Failure, Outcome
from npudiff.run.isolation.faults import Kind, RemoteError, kind_of
from npudiff.text import clipped, printable

_KILLS = {kind.value: kind for kind in Kind if kind.ends_worker}


@dataclass(frozen=True)
class NoScript(Exception):
    """There is no script; ``why`` is the end of a sentence."""

    why: str


def reproduction(outcome: Outcome, finding: Finding, failure: Failure | None) -> Script:
    """Record the calls of a finding's case, and return them as a script; whatever goes wrong is told in its place.

    Parameters
    ----------
    outcome : Outcome
        What the finding is from.
    finding : Finding
        What the script is about.
    failure : Failure or None
        The smallest case; None for a case that fails after another one only.
    """
    try:
        return _script(outcome, finding, failure)
    except NoScript as none:
        return Script(why_not=none.why)
    except Exception as error:  # noqa: BLE001 - whatever it is, the finding is worth more
        seen = clipped(printable(f"{type(error).__name__}: {error}"))
        return Script(why_not=f"npudiff could not write it, please report: {seen}")


def _script(outcome: Outcome, finding: Finding, failure: Failure | None) -> Script:
    subject = outcome.job.subject
    if subject.component.history is not None:
        raise NoScript("a component with history is an object that Python keeps, and not calls of operators")
    kind = _KILLS.get(finding.verdict)
    error = None if failure is None else failure.error
    may_kill = kind is not None or failure is None or isinstance(error, RemoteError)
    apart = needs_process(subject.target, kills=may_kill or outcome.isolated)
    if not apart and subject.target.device != "cpu":
        _refuse_here(outcome, kind, failure)
    if apart and sys.platform != "linux":
        raise NoScript("its calls have to be made in a process of their own, and that is done on Linux only")
    tape = Tape()
    try:
        cases = _cases(finding, failure, subject.component.case_type)
        if apart:
            record_apart(outcome.job, cases, tape, kind)
        else:
            record(outcome.job, cases, tape)
        recording = Recording.of(tape.events())
        return _of(recording, tape, finding, subject.target.device, kind)
    finally:
        tape.close()


def _refuse_here(outcome: Outcome, kind: Kind | None, failure: Failure | None) -> None:
    """Refuse to make calls in this process that it would not survive, or that it cannot make any more."""
    if outcome.isolated and (kind is not None or failure is None):
        raise NoScript("its calls have to be made in a process of their own, and one that has used the device has none")
    if failure is not None and failure.error is not None and kind_of(str(failure.error)) is Kind.FAULT:
        raise NoScript("the device of this process is lost; run it with --isolate")


def _cases(finding: Finding, failure: Failure | None, case_type: type) -> list[Any]:
    """The smallest case; of one that poisons the device, also that in which it was seen."""
    if failure is not None:
        return [failure.case]
    cases = [from_plain(case_type, dict(finding.case))]
    if finding.verdict == POISONS:
        cases.append(from_plain(case_type, finding.detail["victim"]))
    return cases


def _of(recording: Recording, tape: Tape, finding: Finding, device: str, kind: Kind | None) -> Script:
    if recording.refused:
        raise NoScript(recording.refused)
    if not recording.ended and kind is None and finding.verdict != POISONS:
        raise NoScript("the process in which its calls were written down died, or took too long, as it did not before")
    if not recording.calls:
        raise NoScript("no operator is called")
    recording.trim(everything=recording.is_cut_short)
    if not recording.calls:
        raise NoScript("what is compared is not computed by operators")
    if recording.size > MAX_REPRODUCE_TENSORS:
        size = -(-recording.size // 2**20)
        raise NoScript(f"the tensors of its calls have {size} MiB, and {MAX_REPRODUCE_TENSORS >> 20} are kept")
    if recording.is_cut_short and recording.last is None and device == "cpu":
        raise NoScript("the process died, or hung, in the implementation's own Python, and not in an operator")
    end = _end(finding, kind) if recording.is_cut_short or recording.last is not None else ""
    data = REPRODUCE_TENSORS if recording.memories else None
    text = script_of(recording, list(_about(finding, recording)), data, torch.device(device).type, end)
    if len(text.encode()) > MAX_SCRIPT_BYTES:
        raise NoScript(f"it would have more than {MAX_SCRIPT_BYTES >> 20} MiB of text")
    memories = {
        name: torch.frombuffer(bytearray(tape.content(*place)), dtype=torch.uint8)
        if place[1] else torch.empty(0, dtype=torch.uint8)
        for name, place in recording.memories.items()
    }  # fmt: skip
    return Script(text, save(memories) if memories else b"")


def _end(finding: Finding, kind: Kind | None) -> str:
    """What came of the last call."""
    return "it did not come back" if kind is Kind.TIMED_OUT else str(finding.detail.get("error") or "the process died")


def _about(finding: Finding, recording: Recording) -> list[str]:
    detail = finding.detail
    lines = [
        f"{finding.component}.{finding.implementation}: {finding.property_name}: {finding.verdict}",
        f"case: {detail.get('line', '')}",
        f"found on target {finding.target}, CANN {finding.cann}, torch {finding.environment.get('torch', '')}",
    ]
    lines += [f"raised: {detail['error']}"] if detail.get("error") else []
    if recording.is_cut_short:
        lines.append("the last call is what was seen last; a device may be late to tell of an earlier one")
    if recording.ended == "holds":
        lines.append("when these calls were written down, nothing was wrong: it does not happen every time")
    return lines
