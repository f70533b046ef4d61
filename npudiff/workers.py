"""Running jobs in processes beside each other: what goes between them is text, never an object."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from npudiff.codec import dumps, loads
from npudiff.engine import run_job
from npudiff.errors import DeviceLost
from npudiff.finding_page import keep_findings
from npudiff.outcome import Budget, Failure, Job, Outcome, Poisoning, Verdict
from npudiff.target import Target

MOST_WORKERS = 4
"""Processes that a run starts by itself; each holds torch and the tensors of a case."""

Task = tuple[Job, Budget, Path | None]
"""A job, how long it may look, and the folder for its finding; None for a mutant, which leaves none."""

Result = tuple[int, Outcome, list[Path]]
"""Number of the task, its outcome without tensors, and the folders of its findings."""

_CASES = ("worst_case", "first_failure", "failure")


class WorkerFailed(Exception):  # noqa: N818 - what happened
    """A worker met a defect, or died; the message says on which job, and has its traceback if there is one."""


def usable_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_this_host(target: Target) -> bool:
    """Whether memory and kernels of a target are the host's."""
    return target.on_host or target.device == "cpu"


def default_workers(target: Target) -> int:
    """Return how many processes to run jobs in: several on the host, one where a device is shared."""
    if not on_this_host(target) or sys.platform != "linux":  # elsewhere a fork of a process with torch is not safe
        return 1
    return max(1, min(MOST_WORKERS, usable_processors()))


def run_in_workers(tasks: Sequence[Task], workers: int) -> Generator[Result, None, None]:
    """Run tasks in forked processes and yield results as they come.

    Raises
    ------
    WorkerFailed
        If something other than an implementation raised, or a process died.
    """
    context = multiprocessing.get_context("fork")
    team: dict[Connection, tuple[BaseProcess, int]] = {}
    waiting = iter(range(len(tasks)))
    try:
        for index in itertools.islice(waiting, workers):
            ours, theirs = context.Pipe()
            not_theirs = [ours, *team]  # a worker that held these would never see that its parent is gone
            process: BaseProcess = context.Process(target=_work, args=(theirs, tasks, not_theirs), daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
                process.start()
            theirs.close()
            team[ours] = (process, index)
            ours.send_bytes(str(index).encode())
        yield from _collected(tasks, team, waiting)
    finally:
        for ours, (process, _) in team.items():
            process.terminate()
            process.join()
            ours.close()


def _collected(
    tasks: Sequence[Task], team: dict[Connection, tuple[BaseProcess, int]], waiting: Iterator[int]
) -> Iterator[Result]:
    """Take results, and give each worker the next task; after a defect, what has begun is ended and nothing begins."""
    busy: set[Connection] = set(team)
    defect: BaseException | None = None
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)  # noqa: S101 - what wait was given
            process, index = team[ready]
            try:
                message = _received(ready, process, tasks[index][0])
            except (WorkerFailed, KeyboardInterrupt, DeviceLost) as error:
                defect = defect or error
                busy.remove(ready)
                continue
            following = next(waiting, None) if defect is None else None
            if following is None:
                busy.remove(ready)
            else:
                team[ready] = (process, following)
                ready.send_bytes(str(following).encode())
            yield _result(index, tasks[index][0], message)
    if defect is not None:
        raise defect


def _received(connection: Connection, process: BaseProcess, job: Job) -> dict[str, Any]:
    try:
        message = json.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise WorkerFailed(f"the process that ran {job.name} died: {how}") from None
    if "lost" in message:
        raise DeviceLost(message["lost"])
    if "interrupted" in message:
        raise KeyboardInterrupt
    if "defect" in message:
        raise WorkerFailed(f"{job.name}:\n{message['defect']}")
    return dict(message)


def _work(connection: Connection, tasks: Sequence[Task], not_ours: Sequence[Connection]) -> None:
    """The life of a worker: a number in, a result out, until the other side is closed."""
    for other in not_ours:
        other.close()
    torch.set_num_threads(1)  # OpenMP's threads are not in a forked process, and waiting for them has no end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            index = int(connection.recv_bytes())
        except EOFError:
            return
        try:
            message = _message(*tasks[index])
        except KeyboardInterrupt:
            message = {"interrupted": True}
        except DeviceLost as error:
            message = {"lost": str(error)}
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to say it
            message = {"defect": traceback.format_exc()}
        connection.send_bytes(json.dumps(message).encode())


def _message(job: Job, budget: Budget, folder: Path | None) -> dict[str, Any]:
    """Run a job and say what came out, as plain values."""
    outcome = run_job(job, budget)
    message: dict[str, Any] = {}
    for item in dataclasses.fields(outcome):
        value = getattr(outcome, item.name)
        if item.name in _CASES:
            case = value.case if isinstance(value, Failure) else value
            message[item.name] = None if case is None else dumps(case)
        elif item.name == "verdict":
            message[item.name] = value.name
        elif item.name == "poisonings":
            message[item.name] = [dataclasses.astuple(one) for one in value]
        elif item.name not in ("job", "journal"):
            message[item.name] = value
    if folder is not None:
        message["folders"] = [str(path) for _, path in keep_findings(outcome, folder)]
    outcome.settle()
    return message


def _result(index: int, job: Job, message: dict[str, Any]) -> Result:
    """The outcome that a message tells of. Its failures have their cases; the evidence is in the folder."""
    folders = [Path(folder) for folder in message.pop("folders", [])]
    cases = {
        name: None if message[name] is None else loads(job.subject.component.case_type, message[name])
        for name in _CASES
    }
    values = {
        **message,
        "worst_case": cases["worst_case"],
        "first_failure": _failure(cases["first_failure"]),
        "failure": _failure(cases["failure"]),
        "verdict": Verdict[message["verdict"]],
        "alone": tuple(message["alone"]),
        "poisonings": [Poisoning(*one) for one in message["poisonings"]],
        **{name: Counter(message[name]) for name in ("not_applicable", "features")},
    }
    return index, Outcome(job, **values), folders


def _failure(case: Any) -> Failure | None:  # noqa: ANN401 - a case of any component
    return None if case is None else Failure(case, None, None)
