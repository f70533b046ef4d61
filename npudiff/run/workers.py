"""Workers: processes that run jobs in parallel, and send outcomes as JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import signal
import time
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from npudiff.errors import DeviceLost
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.after_fork import begin
from npudiff.run.engine import Progress, run_job
from npudiff.run.events import CasesJudged, JobStarted, Listener
from npudiff.run.explain import explain, judges_here
from npudiff.run.messages import Kept, Task, outcome_from_message, outcome_to_message, with_seed

if TYPE_CHECKING:
    from npudiff.run.isolation.supervisor import SecondLook, Supervisor

Result = tuple[int, Outcome, list[Kept]]
"""Number of the task, its outcome, and its findings."""

_CLOSING = 5.0
"""Seconds that an idle worker gets to exit."""

TOLD_EVERY = 0.5
"""Seconds between two messages of a worker that say how many cases it has judged."""


class TaskRunner:
    """Runs tasks one after the other: in this process, or under a supervisor where their cases are isolated.

    Parameters
    ----------
    tasks : sequence of Task
        All that may have to be run, with the same isolation.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._supervisor: Supervisor | None = None
        self._second_look: SecondLook | None = None

    def run(self, index: int, progress: Progress = lambda _: None) -> tuple[Outcome, list[Kept]]:
        """Run a task; return its outcome and its findings.

        Raises
        ------
        DeviceLost
            If a fresh process gets no known answer from the device.
        """
        task = self._tasks[index]
        if task.budget.isolation is not None:
            return outcome_from_message(task.job, self._supervised().run(index))
        look = None if task.keep is None else self._looks_again(task.budget)
        budget = task.budget if look is None else with_seed(task.budget)
        outcome = run_job(task.job, budget, progress)
        if task.budget.explains and outcome.failure is not None and look is None:
            explain(outcome, judges_here)
        if look is not None and outcome.failure is not None:
            return outcome_from_message(task.job, look.at(index, budget, outcome))
        return outcome, task.kept(outcome)

    def close(self) -> None:
        """End what was started."""
        if self._supervisor is not None:
            self._supervisor.close()
        if self._second_look is not None:
            self._second_look.close()

    def _looks_again(self, budget: Budget) -> SecondLook | None:
        """What runs a job that fails again; it is made before any job, so that it has run none."""
        if self._second_look is None and budget.second_look is not None:
            from npudiff.run.isolation.supervisor import SecondLook  # noqa: PLC0415 - not on every system

            self._second_look = SecondLook(self._tasks)
        return self._second_look

    def _supervised(self) -> Supervisor:
        if self._supervisor is None:
            from npudiff.run.isolation.supervisor import Supervisor  # noqa: PLC0415 - not on every system

            self._supervisor = Supervisor(self._tasks)
        return self._supervisor


class WorkerFailed(Exception):
    """A worker died, or npudiff or a component raised in it; the message names the job and has the traceback."""


def run_in_workers(
    tasks: Sequence[Task], workers: int, tell: Listener = lambda _: None, stage: str = ""
) -> Generator[Result, None, None]:
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
            _give(ours, tasks, index, tell, stage)
        yield from _collected(tasks, team, waiting, tell, stage)
        for ours, (process, _) in team.items():
            ours.close()
            process.join(_CLOSING)
    finally:
        for ours, (process, _) in team.items():
            process.terminate()
            process.join()
            ours.close()


def _give(worker: Connection, tasks: Sequence[Task], index: int, tell: Listener, stage: str) -> None:
    worker.send_bytes(str(index).encode())
    tell(JobStarted(tasks[index].job, stage))


def _collected(
    tasks: Sequence[Task],
    team: dict[Connection, tuple[BaseProcess, int]],
    waiting: Iterator[int],
    tell: Listener,
    stage: str,
) -> Iterator[Result]:
    """Yield results and give each worker its next task; after a failure no task is given out any more."""
    busy: set[Connection] = set(team)
    defect: BaseException | None = None
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)  # noqa: S101 - what wait was given
            process, index = team[ready]
            try:
                message = _received(ready, process, tasks[index].job)
            except (WorkerFailed, KeyboardInterrupt, DeviceLost) as error:
                defect = defect or error
                busy.remove(ready)
                continue
            if "judged" in message:
                tell(CasesJudged(tasks[index].job, message["judged"], stage))
                continue
            following = next(waiting, None) if defect is None else None
            if following is None:
                busy.remove(ready)
            else:
                team[ready] = (process, following)
                _give(ready, tasks, following, tell, stage)
            yield index, *outcome_from_message(tasks[index].job, message)
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
    """The parent has ended this worker."""


def _end(*_: object) -> None:
    raise _Ended


def _work(connection: Connection, tasks: Sequence[Task], not_ours: Sequence[Connection]) -> None:
    """The worker: it runs the tasks whose numbers it gets until the connection is closed."""
    for other in not_ours:
        other.close()
    begin()
    if tasks[0].budget.isolation is not None:
        signal.signal(signal.SIGTERM, _end)  # it runs nothing of the implementation, and can end what does
    try:
        with contextlib.closing(TaskRunner(tasks)) as runner:
            while True:
                index = int(connection.recv_bytes())
                _send(connection, _message(runner, index, connection))
    except (EOFError, ConnectionError, _Ended):
        return


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _message(runner: TaskRunner, index: int, connection: Connection) -> dict[str, Any]:
    """Run a task and return its message, also where it fails."""
    told = time.monotonic()

    def judged(outcome: Outcome) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            _send(connection, {"judged": outcome.cases})

    try:
        return outcome_to_message(*runner.run(index, judged))
    except _Ended:
        raise
    except KeyboardInterrupt:
        return {"interrupted": True}
    except DeviceLost as error:
        return {"lost": str(error)}
    except BaseException:  # noqa: BLE001 - a defect, of whatever kind
        return {"defect": traceback.format_exc()}
