"""A finding as a script that needs neither npudiff nor anything else but torch and torch_npu.

Its case is checked once more while the calls are written down: here, or in a process that may die of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
from npudiff.findings.reproduce.recorder import Recorder, Refused, Tape, Watching
from npudiff.findings.reproduce.script import WAITED, Recording, script_of
from npudiff.judge.judge import check
from npudiff.model.anything import AnyInputs
from npudiff.model.case import from_plain
from npudiff.model.component import (
    Answer,
    Comparison,
    ExpectedOutput,
    ImplementationRaised,
    NotApplicable,
    OutputComparison,
    Subject,
)
from npudiff.model.faults import Kind, RemoteError, kind_of
from npudiff.model.fingerprint import InputsChanged
from npudiff.model.implementation import Target
from npudiff.model.job import Failure, Job, Outcome, Verdict
from npudiff.run.after_fork import begin
from npudiff.run.isolation.reaper import reaper
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
    if subject.component.ranks is not None:
        raise NoScript("several processes compute it together, and a script is one; replay runs all of them")
    if subject.implementation.untrusted:
        raise NoScript("its calls are made in a process into which the judge does not look (--untrusted)")
    if finding.verdict == Verdict.DRIFT.value:
        raise NoScript("it is seen in many cases together, and not in the calls of one")
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


SECONDS = 120.0
"""Time in which a case is over that was over before."""

HANG_SECONDS = 3.0
"""Time without another call after which a case that hung before is taken to hang again."""


@dataclass(frozen=True)
class WatchedSubject(Subject):
    """A subject whose calls are written down."""

    recorder: Recorder
    """Writes; it must be entered."""
    expectations: list[Mapping[str, ExpectedOutput]]
    """What the reference said, each time that it was asked."""

    def call_guarded(self, question: Callable[[], Answer], *given: object) -> Answer:
        """Write down what the question calls; what surrounds it is ours."""

        def watched() -> Answer:
            self.recorder.returned = False
            self.recorder.variables.given(given[0] if len(given) == 1 else list(given))
            self.recorder.tape.note("run")
            with self.recorder.at(Watching.EVERYTHING):
                answer = question()
            self.recorder.returned = True
            return answer

        with self.recorder.at(Watching.NOTHING):
            return super().call_guarded(watched, *given)

    def _taken_over(self, value: object, name: str) -> torch.Tensor:
        """Note that an output is copied to the host, which is no call of the implementation."""
        with self.recorder.at(Watching.NOTHING):
            copy = super()._taken_over(value, name)
            self.recorder.fetched(name, cast("torch.Tensor", value), copy)
        return copy

    def fresh(self) -> Subject:
        """What an implementation makes to keep between calls is made by calls too."""
        with self.recorder.at(Watching.EVERYTHING):
            return super().fresh()

    def expected(self, inputs: AnyInputs) -> Mapping[str, ExpectedOutput]:
        """Write down nothing of the reference: its values are stored."""
        with self.recorder.at(Watching.NOTHING):
            expected = super().expected(inputs)
        self.expectations.append(expected)
        return expected


def record(job: Job, cases: Sequence[Any], tape: Tape, *, sealed: bool = True) -> None:
    """Check cases one after the other, and write the calls of all on a tape, and how the last one ended."""
    recorder = Recorder(tape, sealed=sealed)
    subject = WatchedSubject(job.subject.component, job.subject.implementation, job.subject.target, recorder, [])
    with job.subject.target.activate(), recorder:
        for case in cases[:-1]:
            with contextlib.suppress(ImplementationRaised, NotApplicable):
                check(job.prop, subject, case)
        subject.expectations.clear()
        try:
            comparison = check(job.prop, subject, cases[-1])
        except NotApplicable as error:
            tape.refuse(f"the property says nothing of the case here: {error}")
            return
        except ImplementationRaised as error:
            _note_raised(error.__cause__ or error, recorder)
            return
    with recorder.at(Watching.NOTHING):
        _note_judged(comparison, recorder, subject.expectations[-1] if subject.expectations else {})


def _note_raised(cause: BaseException, recorder: Recorder) -> None:
    tape = recorder.tape
    chain: list[BaseException] = []
    link: BaseException | None = cause
    while link is not None and all(link is not one for one in chain):
        chain.append(link)
        link = link.__context__ if link.__cause__ is None else link.__cause__
    if recorder.error is not None and any(one is recorder.error for one in chain):
        tape.note("ended", how="raised")
    elif isinstance(cause, InputsChanged):
        tape.note("unchanged", tensors=recorder.variables.inputs())
        tape.note("ended", how="wrote into inputs")
    elif recorder.returned:
        tape.note("ended", how=WAITED)
    else:
        seen = clipped(printable(f"{type(cause).__name__}: {cause}".strip().splitlines()[0]), 200)
        tape.refuse(f"the exception was raised by the implementation's own Python, and not by an operator: {seen}")


def _note_judged(comparison: Comparison, recorder: Recorder, expected: Mapping[str, ExpectedOutput]) -> None:
    """Say which variables are compared with what. What no call has to do with cannot be judged by calls."""
    outputs, wrong, skipped = [], False, []
    for output in comparison.outputs:
        said = None
        with contextlib.suppress(Refused):
            said = _judged(output, recorder, expected.get(output.name))
        if said is None:
            skipped.append(output.name)
            continue
        outputs.append(said)
        wrong = wrong or output.worst > 1
    if not outputs or (not comparison.holds and not wrong):
        recorder.tape.refuse("what is wrong in the end was put together by Python, and not computed by operators")
        return
    recorder.tape.note("judged", context=comparison.context, outputs=outputs, skipped=skipped)
    recorder.tape.note("ended", how="holds" if comparison.holds else "wrong")


def _judged(output: OutputComparison, recorder: Recorder, expected: ExpectedOutput | None) -> dict[str, Any] | None:
    actual, value, bound, most_gain = output.actual, output.value, output.bound, output.most_gain
    dtype, names = None if actual is None else actual.dtype, recorder.variables
    if output.problem is not None and expected is not None:  # nothing else was compared
        value, bound, dtype, most_gain = expected.value, expected.bound, expected.dtype, expected.gain
    if actual is None or value is None or bound is None or not names.is_derived(actual):
        return None
    label = f"expected_{output.name}"
    said = {
        "name": output.name,
        "dtype": str(dtype),
        "actual": names.reference(actual),
        "value": names.reference(value) if names.is_derived(value) else names.kept(value, label),
        "bound": names.kept(bound, f"bound_{output.name}", may_be_one=True),
        "nan_is_nan": _nan_is_nan(output),
    }
    if most_gain is not None:
        said["gain"] = names.kept(most_gain, f"gain_{output.name}", may_be_one=True)
    return said


def _nan_is_nan(output: OutputComparison) -> bool:
    """Whether it was compared as two runs are that must agree: where both have NaN they do."""
    if output.actual is None or output.value is None or output.ratio is None:
        return False
    return bool((output.actual.isnan() & output.value.isnan() & (output.ratio == 0)).any())


def needs_process(target: Target, *, kills: bool) -> bool:
    """Whether calls must be made in a process of their own: they may kill it, or this one must not touch the device.

    One that has touched it, as a batch worker has, cannot be forked: its child could not use the device.
    """
    if target.device == "cpu":
        return kills
    module = torch.get_device_module(torch.device(target.device).type)
    return not module.is_initialized()


def record_apart(job: Job, cases: Sequence[Any], tape: Tape, kind: Kind | None) -> None:
    """Do as ``record`` does in a forked process, which may die or hang, as ``kind`` says that it did before."""
    watching = reaper()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
        pid = os.fork()
    if not pid:
        watching.leave()
        _live(job, cases, tape, sealed=kind is None)
    watching.watch(pid)
    try:
        _wait(pid, tape, HANG_SECONDS if kind is Kind.TIMED_OUT else SECONDS)
    finally:
        for end in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        watching.watch(pid, over=False)


def _wait(pid: int, tape: Tape, quiet: float) -> None:
    """Wait for a process to end, as long as it writes something down now and then."""
    seen, last, until = tape.written, time.monotonic(), time.monotonic() + SECONDS
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        now = time.monotonic()
        if tape.written != seen:
            seen, last = tape.written, now
        if now > until or now - last > quiet:
            return
        time.sleep(0.005)


def _live(job: Job, cases: Sequence[Any], tape: Tape, *, sealed: bool) -> None:
    """The child's side: it says nothing but on the tape, and never goes back to what the parent does."""
    try:
        os.setsid()
        begin()
        faulthandler.disable()  # it would tell a terminal of what is expected
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        record(job, cases, tape, sealed=sealed)
    except BaseException:  # noqa: BLE001 - the parent has to say it
        tape.refuse(f"npudiff could not record it, please report: {traceback.format_exc(limit=-1)}")
    finally:
        os._exit(0)
