"""Running jobs in processes beside each other: what goes between them is text, never an object."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from npudiff.errors import DeviceLost
from npudiff.model.job import Job
from npudiff.model.outcome import Outcome
from npudiff.run.after_fork import begin
from npudiff.run.engine import run_job
from npudiff.run.messages import Task, outcome_from_message, outcome_to_message

Result = tuple[int, Outcome, list[Path]]
"""Number of the task, its outcome without tensors, and the folders of its findings."""

_CLOSING = 5.0
"""Seconds that a worker without a task gets to end what it holds."""


class WorkerFailed(Exception):  # noqa: N818 - what happened
    """A worker met a defect, or died; the message says on which job, and has its traceback if there is one."""


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
        for ours, (process, _) in team.items():
            ours.close()
            process.join(_CLOSING)
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
            yield index, *outcome_from_message(tasks[index][0], message)
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


class _Ended(BaseException):
    """The parent wants no more of a worker."""


def _work(connection: Connection, tasks: Sequence[Task], not_ours: Sequence[Connection]) -> None:
    """The life of a worker: a number in, a result out, until the other side is closed."""
    for other in not_ours:
        other.close()
    begin()
    try:
        with _runner(tasks) as run:
            while True:
                index = int(connection.recv_bytes())
                connection.send_bytes(json.dumps(_message(run, index)).encode())
    except (EOFError, ConnectionError, _Ended):
        return


def _message(run: Callable[[int], dict[str, Any]], index: int) -> dict[str, Any]:
    """Run a task; whatever happens, the parent has to say it."""
    try:
        return run(index)
    except _Ended:
        raise
    except KeyboardInterrupt:
        return {"interrupted": True}
    except DeviceLost as error:
        return {"lost": str(error)}
    except BaseException:  # noqa: BLE001 - a defect, of whatever kind
        return {"defect": traceback.format_exc()}


@contextlib.contextmanager
def _runner(tasks: Sequence[Task]) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Give what runs a task and tells its outcome: this process, or a scout where cases are isolated."""
    if tasks[0][1].isolation is None:
        yield lambda index: outcome_to_message(run_job(*tasks[index][:2]), tasks[index][2])
        return
    from npudiff.run.isolation.supervisor import Supervisor  # noqa: PLC0415 - the parts that are not on every system

    def end(*_: object) -> None:
        raise _Ended

    signal.signal(signal.SIGTERM, end)  # it runs nothing of the implementation, and can end what does
    with contextlib.closing(Supervisor(tasks)) as scouting:
        yield scouting.run
