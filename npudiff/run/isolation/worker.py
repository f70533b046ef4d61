"""The worker: a process that judges single cases until its parent closes the connection."""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from npudiff.judge.drift import measures_drift, sums_of
from npudiff.judge.judge import LocalJudge
from npudiff.model.anything import AnyCase
from npudiff.model.case import dumps, loads
from npudiff.model.component import Comparison, ImplementationRaised, NotApplicable
from npudiff.model.faults import RemoteError
from npudiff.model.implementation import Target
from npudiff.model.job import Job
from npudiff.run.isolation.ipc import SharedTensors, pack_comparison
from npudiff.run.isolation.lingering import Lingering

PROBE = 85_344
"""Known answer of the probe: the sum of the squares of 0 to 63."""


def worker_main(job: Job, connection: Connection, shared: SharedTensors) -> NoReturn:
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
    judge, lingering = LocalJudge(job), Lingering()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        told = _answer(question, judge, job, shared)
        lingering.settle()
        return told

    serve(connection, answer)


def serve(connection: Connection, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> NoReturn:
    """Answer questions until the other side is gone; a defect is an answer as well."""
    while True:
        try:
            question = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        try:
            reply = answer(question)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to say it
            reply = {"verdict": "defect", "text": traceback.format_exc()}
        try:
            connection.send_bytes(json.dumps(reply).encode())
        except OSError:
            os._exit(0)


def _answer(question: dict[str, Any], judge: LocalJudge, job: Job, shared: SharedTensors) -> dict[str, Any]:
    if "probe" in question:
        return {"verdict": "probed", "good": probe_device(job.subject.target)}
    case = loads(job.subject.component.case_type, question["case"])
    if job.subject.component.history is None:
        return _judged(case, judge, job, shared)
    if not _goes_on(judge.case, case):
        judge.begin()
    return {**_judged(case, judge, job, shared), "case": dumps(judge.case)}


def _goes_on(before: AnyCase, case: AnyCase) -> bool:
    """Whether a trace begins with the one before, and has more steps."""
    if before is None or len(before.steps) >= len(case.steps):
        return False
    return bool(dataclasses.replace(case, steps=case.steps[: len(before.steps)]) == before)


def _judged(case: AnyCase, judge: LocalJudge, job: Job, shared: SharedTensors) -> dict[str, Any]:
    try:
        comparison = judge.check(case)
    except NotApplicable as error:
        return {"verdict": "not applicable", "text": str(error)}
    except ImplementationRaised as error:
        remote = RemoteError.of(error.__cause__ or error)
        said = {"name": remote.name, "text": remote.text, "kind": remote.kind.name, "frames": remote.frames}
        return {"verdict": "raised", **said}
    if isinstance(comparison, Comparison) and not comparison.holds:
        return {"verdict": "differs", **pack_comparison(comparison, shared)}
    sums = sums_of(comparison) if measures_drift(job) else {}
    held: dict[str, Any] = {"worst": comparison.worst, "exact": comparison.exact, "left_out": comparison.left_out}
    return {"verdict": "holds", **held, "sums": sums}


def probe_device(target: Target) -> bool:
    """Whether the device gives the known answer to a small question."""
    try:
        numbers = torch.arange(64, dtype=torch.float32).to(target.device)
        answer = (numbers * numbers).sum()
        target.synchronize()
        return int(answer.cpu()) == PROBE
    except Exception:  # noqa: BLE001 - whatever it says, the device is not good
        return False
