"""The bench: processes that have everything imported, and wait for a candidate each."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch

from npudiff.errors import ExitCode, UsageError
from npudiff.judge.judge import property_of_mutant
from npudiff.model.component import Subject
from npudiff.model.implementation import Target
from npudiff.model.job import Job
from npudiff.run.discovery import built_in_implementations, load_components, select_implementations, target_names
from npudiff.run.engine import run_job
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.process import WorkerProcess
from npudiff.run.messages import outcome_to_message
from npudiff.run.plan import Request, make_plan
from npudiff.run.untrusted.remote import Nursery
from npudiff.serve.requests import (
    CancelRequest,
    CheckRequest,
    ComponentsRequest,
    HelloRequest,
    read_request,
)
from npudiff.serve.verdict import COMMAND, NOT_KEPT, text_of, verdict_on
from npudiff.show.document import document
from npudiff.show.finding import told_only
from npudiff.show.listing import listed

GRACE = 5.0
"""Seconds after its time that a judge gets to say what it has seen."""

WARM_UP = 300.0

_PRACTICE = "rms_norm"
"""A component whose mutants are judged before any candidate: what is imported late is imported then."""

_MOST_PRACTICE, _PRACTICE_TRIES = 3, 10


class JudgeProcess(WorkerProcess):
    """A process that judges one candidate and ends."""

    def __init__(self, nursery: Nursery) -> None:
        super().__init__(functools.partial(_life, nursery))

    @property
    def connection(self) -> Connection:
        """Where it answers."""
        return self._connection

    def begin(self, message: object, folder: Path, workers: int) -> None:
        """Give it a candidate, a folder for its file, and processors."""
        question = {"message": message, "folder": str(folder), "workers": workers}
        self._connection.send_bytes(json.dumps(question).encode())


def _life(nursery: Nursery, connection: Connection, shared: SharedTensors) -> NoReturn:
    """Wait for a candidate, judge it, and end."""
    del shared
    try:
        question = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)
    _, request = read_request(question["message"])

    def begun(number: int) -> None:
        connection.send_bytes(json.dumps({"begun": number}).encode())

    assert isinstance(request, CheckRequest)  # noqa: S101 - nothing else is given to a judge
    said = verdict_on(request, nursery, Path(question["folder"]), begun, workers=question["workers"])
    connection.send_bytes(json.dumps({"said": said}, allow_nan=False).encode())
    os._exit(0)


@dataclass(frozen=True)
class _Asked:
    """A candidate as somebody asks for its verdict."""

    id: Any
    request: CheckRequest
    message: object
    alone: bool = False
    """Whether nothing else may be judged at the same time: one of several has killed the process that all were forked
    from, and which one that was is known only of candidates that are judged alone."""


@dataclass
class _Running:
    """A candidate that is being judged."""

    asked: _Asked
    judge: JudgeProcess
    folder: Path
    until: float
    nursery: Nursery
    """From which its processes are forked."""
    beside: bool = False
    """Whether another candidate was judged at the same time."""
    numbers: list[int] = dataclasses.field(default_factory=list)
    """Its processes, as the nursery knows them."""


class Bench:
    """Judges candidates, several at a time, each in processes of its own.

    Parameters
    ----------
    target : Target
        Where candidates run.
    workers : int
        Candidates that are judged at a time.
    """

    def __init__(self, target: Target, workers: int) -> None:
        torch.set_num_threads(1)
        self._workers, self._target = workers, target
        self._nursery = self._new_nursery(waits=False)  # it imports torch while this process practises
        load_components([])
        built_in_implementations()
        _practise(target)
        self._nursery.await_ready()
        gc.collect()
        gc.freeze()
        self._waiting: deque[_Asked] = deque()
        self._running: list[_Running] = []
        self._idle: list[JudgeProcess] = []
        self._fill()

    @property
    def busy(self) -> bool:
        """Whether anything is being judged, or waits for it."""
        return bool(self._running or self._waiting)

    def take(self, message: object) -> Iterator[dict[str, Any]]:
        """Take a request; yields what can be answered at once."""
        given = message.get("id") if isinstance(message, dict) else None
        try:
            _, request = read_request(message)
        except UsageError as error:
            yield _refused(given, str(error))
            return
        if isinstance(request, CheckRequest):
            self._waiting.append(_Asked(given, request, message))
            self._begin()
        elif isinstance(request, ComponentsRequest):
            yield _components(given, request)
        elif isinstance(request, HelloRequest):
            yield self._hello(given)
        else:
            yield from self._cancel(given, request)

    def answers(self, also: Any, seconds: float | None) -> tuple[bool, list[dict[str, Any]]]:  # noqa: ANN401 - has a file number
        """Wait for verdicts, or until something else can be read; return whether that is so, and the verdicts.

        Parameters
        ----------
        also : object
            A file or its number.
        seconds : float or None
            The longest wait; None for any.
        """
        ends = [one.until for one in self._running]
        if ends:
            left = max(0.0, min(ends) - time.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        ready = wait([also, *(one.judge.connection for one in self._running)], seconds)
        told = [answer for one in [*self._running] if one.judge.connection in ready for answer in self._heard(one)]
        now = time.monotonic()
        told += [
            self._ended(one, self._interrupted(f"no verdict within {one.asked.request.seconds:g} s: it was ended"))
            for one in [*self._running]
            if now > one.until
        ]
        self._begin()
        return also in ready, told

    def close(self) -> None:
        """End everything."""
        for one in [*self._running]:
            self._ended(one, {})
        for judge in self._idle:
            judge.kill()
        self._nursery.close()

    def _begin(self) -> None:
        """Give candidates that wait to judges that do."""
        while self._waiting and self._idle and self._may_begin(self._waiting[0]):
            candidate = self._waiting.popleft()
            folder = Path(tempfile.mkdtemp(prefix="npudiff-"))
            judge = self._idle.pop()
            asked = len(self._running) + 1 + len(self._waiting)
            judge.begin(candidate.message, folder, max(1, self._workers // asked))
            until = time.monotonic() + candidate.request.seconds + GRACE
            self._running.append(_Running(candidate, judge, folder, until, self._nursery))
            if len(self._running) > 1:
                for one in self._running:
                    one.beside = True

    def _may_begin(self, candidate: _Asked) -> bool:
        """Whether a candidate need not wait for others to end."""
        return not self._running or not (candidate.alone or self._running[0].asked.alone)

    def _heard(self, one: _Running) -> Iterator[dict[str, Any]]:
        """Read what a judge has sent."""
        try:
            said = json.loads(one.judge.connection.recv_bytes())
        except (EOFError, OSError):
            problem = "the judge itself has ended: not enough memory, or a defect of npudiff"
            said = {"said": document(COMMAND, ExitCode.INTERNAL, problem, {})}
        if "begun" in said:
            one.numbers.append(said["begun"])
        elif one.beside and said["said"]["exit_code"] != ExitCode.CLEAN and not one.nursery.alive:
            self._end(one)
            self._waiting.appendleft(replace(one.asked, alone=True))
        else:
            yield self._ended(one, said["said"])

    def _ended(self, one: _Running, said: dict[str, Any]) -> dict[str, Any]:
        """End the processes of a candidate, and return the answer."""
        self._end(one)
        return _answer(one.asked.id, said) if said else {}

    def _end(self, one: _Running) -> None:
        """End the processes of a candidate."""
        self._running.remove(one)
        one.judge.kill()
        try:
            for number in one.numbers:
                one.nursery.end(number)
        except (OSError, EOFError):  # a candidate has killed its parent
            if one.nursery is self._nursery:
                self._begin_anew()
        shutil.rmtree(one.folder, ignore_errors=True)
        self._fill()

    def _new_nursery(self, *, waits: bool = True) -> Nursery:
        return Nursery(self._target, WARM_UP, GRACE, silent=True, waits=waits)  # a client may not read standard error

    def _begin_anew(self) -> None:
        """Have another nursery, and judges that know it; what is judged with the one before gets to its answer."""
        self._nursery.close()
        self._nursery = self._new_nursery()
        for judge in self._idle:
            judge.kill()
        self._idle.clear()

    def _fill(self) -> None:
        """Have as many judges as may judge at a time, busy or waiting."""
        while len(self._idle) + len(self._running) < self._workers:
            self._idle.append(JudgeProcess(self._nursery))

    def _cancel(self, given: Any, request: CancelRequest) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any JSON value
        for one in [*self._running]:
            if one.asked.id == request.of:
                yield self._ended(one, self._interrupted("cancelled"))
                self._begin()
                return
        for waits in [*self._waiting]:
            if waits.id == request.of:
                self._waiting.remove(waits)
                yield _answer(request.of, self._interrupted("cancelled"))
                return
        yield _refused(given, f"cancel: nothing with the id {request.of!r:.100} is being judged")

    def _interrupted(self, problem: str) -> dict[str, Any]:
        return document(COMMAND, ExitCode.INTERRUPTED, problem, {})

    def _hello(self, given: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
        target = self._nursery.target
        content = {
            "target": {"name": target.name, "device": target.device, "cann": target.cann},
            "workers": self._workers,
            "judging": len(self._running),
            "waiting": len(self._waiting),
        }
        return {"id": given, **document("hello", ExitCode.CLEAN, "", content)}


def _answer(given: Any, said: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    return {"id": given, **said, "text": text_of(said)}


def _refused(given: Any, problem: str) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    return _answer(given, document(COMMAND, ExitCode.USAGE, problem, {}))


def _components(given: Any, request: ComponentsRequest) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    try:
        components = load_components(request.names)
    except UsageError as error:
        return _refused(given, str(error))
    implementations = select_implementations(components, [])
    content = {
        "components": [dataclasses.asdict(listed(one, implementations)) for one in components],
        "targets": target_names(),
    }
    return {"id": given, **document("list", ExitCode.CLEAN, "", content)}


def _practise(target: Target) -> None:
    """Judge something right and something wrong, so that no judge pays for what is imported or made late."""
    plan = make_plan(
        Request(components=(_PRACTICE,), target=target.name, cann=target.cann, examples=2, isolate=False, seed=1)
    )
    for job in (*plan.jobs[:_MOST_PRACTICE], *(_wrong(job) for job in plan.mutants[:_MOST_PRACTICE])):
        outcome = run_job(job, replace(plan.budget(job), examples=20, smaller=_PRACTICE_TRIES))
        outcome_to_message(outcome, told_only(NOT_KEPT)(outcome))


def _wrong(job: Job) -> Job:
    item = replace(job.subject.implementation, wrong=None)
    subject = Subject(job.subject.component, item, job.subject.target)
    return replace(job, subject=subject, prop=property_of_mutant(item))
