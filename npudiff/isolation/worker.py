"""The life of a worker: it judges the cases that it is sent, until the other side is gone."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from npudiff.codec import dumps, loads
from npudiff.compare import Comparison
from npudiff.component import ImplementationRaised
from npudiff.isolation.faults import kind_of
from npudiff.isolation.wire import SharedTensors, packed
from npudiff.judge import LocalJudge
from npudiff.outcome import Job
from npudiff.property import NotApplicable
from npudiff.target import Target

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: the kernel signals a process whose parent is gone

PROBE = 85_344
"""Sum of the squares of 0 to 63: what a device that can be used says when it is asked."""


def live(job: Job, connection: Connection, shared: SharedTensors) -> NoReturn:
    """Answer until the other side is gone; never return to what was forked.

    Parameters
    ----------
    job : Job
        Whose cases are judged.
    connection : Connection
        Questions come in, and answers go out.
    shared : SharedTensors
        Where tensors of answers go.
    """
    os.setsid()  # a group of its own, with all that the implementation starts
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # should the guardian be gone as well
    torch.set_num_threads(1)  # OpenMP's threads are not in a forked process, and waiting for them has no end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    judge = LocalJudge(job)
    while True:
        try:
            question = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(_answer(question, judge, job, shared)).encode())
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to say it
            connection.send_bytes(json.dumps({"verdict": "defect", "text": traceback.format_exc()}).encode())


def _answer(question: dict[str, Any], judge: LocalJudge, job: Job, shared: SharedTensors) -> dict[str, Any]:
    if "probe" in question:
        return {"verdict": "probed", "good": probed(job.subject.target)}
    case = loads(job.subject.component.case_type, question["case"])
    if job.subject.component.history is None:
        return _judged(case, judge, shared)
    if not _goes_on(judge.case, case):
        judge.begin()
    return {**_judged(case, judge, shared), "case": dumps(judge.case)}


def _goes_on(before: Any, case: Any) -> bool:  # noqa: ANN401 - cases of any component with history
    """Whether a trace begins with the one before, and has more steps."""
    if before is None or len(before.steps) >= len(case.steps):
        return False
    return bool(dataclasses.replace(case, steps=case.steps[: len(before.steps)]) == before)


def _judged(case: Any, judge: LocalJudge, shared: SharedTensors) -> dict[str, Any]:  # noqa: ANN401
    try:
        comparison = judge.check(case)
    except NotApplicable as error:
        return {"verdict": "not applicable", "text": str(error)}
    except ImplementationRaised as error:
        cause = error.__cause__ or error
        text = f"{type(cause).__name__}: {cause}"
        return {"verdict": "raised", "name": type(cause).__name__, "text": str(cause), "kind": kind_of(text).name}
    if isinstance(comparison, Comparison) and not comparison.holds:
        return {"verdict": "differs", **packed(comparison, shared)}
    return {"verdict": "holds", "worst": comparison.worst, "exact": comparison.exact}


def probed(target: Target) -> bool:
    """Whether the device gives the known answer to a small question."""
    try:
        numbers = torch.arange(64, dtype=torch.float32).to(target.device)
        answer = (numbers * numbers).sum()
        target.synchronize()
        return int(answer.cpu()) == PROBE
    except Exception:  # noqa: BLE001 - whatever it says, the device is not good
        return False
