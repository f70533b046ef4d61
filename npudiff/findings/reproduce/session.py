"""Checking a case once more while its calls are written down: here, or in a process that may die of it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from npudiff.findings.reproduce.recorder import Recorder, WatchedSubject, Watching
from npudiff.findings.reproduce.script import WAITED
from npudiff.findings.reproduce.tape import Refused, Tape
from npudiff.judge.properties import check
from npudiff.model.comparison import Comparison, OutputComparison
from npudiff.model.component import ExpectedOutput, ImplementationRaised, InputsChanged, NotApplicable
from npudiff.model.job import Job
from npudiff.model.target import Target
from npudiff.run.after_fork import begin
from npudiff.run.isolation.faults import Kind
from npudiff.run.isolation.reaper import reaper
from npudiff.text import clipped, printable

SECONDS = 120.0
"""Time in which a case is over that was over before."""

HANG_SECONDS = 3.0
"""Time without another call after which a case that hung before is taken to hang again."""


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
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
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
