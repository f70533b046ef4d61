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
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from npudiff.errors import DeviceLost
from npudiff.model.case import dumps
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.after_fork import begin
from npudiff.run.engine import Progress, run_job
from npudiff.run.events import CasesJudged, JobStarted, Listener
from npudiff.run.explain import explain, judges_here
from npudiff.run.messages import Kept, Task, outcome_from_message, outcome_to_message, with_seed
from npudiff.run.together import batches, run_together

if TYPE_CHECKING:
    from npudiff.model.job import Failure
    from npudiff.run.isolation.supervisor import SecondLook, Supervisor

Result = tuple[int, Outcome, list[Kept]]
"""Number of the task, its outcome, and its findings."""

_CLOSING = 5.0
"""Seconds that an idle worker gets to exit."""

TOLD_EVERY = 0.5
"""Seconds between two messages of a worker that say how many cases it has judged."""


class TaskRunner:
    """Runs tasks: in this process, or under a supervisor where their cases are isolated.

    Parameters
    ----------
    tasks : sequence of Task
        All that may have to be run, with the same isolation.
    chosen : collection of int or None
        Numbers of those that will be run; None for all.
    """

    def __init__(self, tasks: Sequence[Task], chosen: Collection[int] | None = None) -> None:
        self._tasks = tasks
        self._supervisor: Supervisor | None = None
        self._second_look: SecondLook | None = None
        wanted = range(len(tasks)) if chosen is None else chosen
        self._batch_of = {index: batch for batch in batches(tasks, wanted) for index in batch}
        self._together: dict[int, Outcome] = {}

    def run(self, index: int, progress: Progress = lambda _: None) -> tuple[Outcome, list[Kept]]:
        """Run a task, and with the first of a batch the others as well; return its outcome and its findings.

        Raises
        ------
        DeviceLost
            If a fresh process gets no known answer from the device.
        """
        batch = self._batch_of.get(index, ())
        if len(batch) < 2:
            return self._alone(index, self._tasks[index].budget, progress)
        if index not in self._together:
            self._run_together(batch, progress)
        outcome, task = self._together.pop(index), self._tasks[index]
        return (outcome, task.kept(outcome)) if outcome.failure is None else self._again(index, outcome, progress)

    def _run_together(self, batch: Sequence[int], progress: Progress) -> None:
        jobs, budgets = [self._tasks[index].job for index in batch], [self._tasks[index].budget for index in batch]
        self._looks_again(budgets[0])
        self._together |= zip(batch, run_together(jobs, budgets, progress), strict=True)

    def _again(self, index: int, seen: Outcome, progress: Progress) -> tuple[Outcome, list[Kept]]:
        """Run a task by itself that has failed together with others, so that its case becomes the smallest.

        If no own draw fails, its case is run; if that holds now, it is told as a failure that does not repeat.
        """
        task, case = self._tasks[index], dumps(cast("Failure", seen.failure).case)
        for budget in (task.budget, replace(task.budget, explicit_cases=(case,), examples=0)):
            alone = self._alone(index, budget, progress)
            if alone[0].findings:
                return alone
        seen.repeated = (0, 1)
        return seen, task.kept(seen)

    def _alone(self, index: int, budget: Budget, progress: Progress) -> tuple[Outcome, list[Kept]]:
        task = self._tasks[index]._replace(budget=budget)
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
    """A worker died, or npudiff or a component raised in it; the message names the job and has the traceback.

    Attributes
    ----------
    task : int
        Number of the task that it ran.
    """

    task = 0


def run_in_workers(
    tasks: Sequence[Task],
    workers: int,
    tell: Listener = lambda _: None,
    stage: str = "",
    begun: Callable[[int], None] = lambda _: None,
) -> Generator[Result, None, None]:
    """Run tasks in forked processes and yield results as they come.

    Parameters
    ----------
    tasks : sequence of Task
        What is run.
    workers : int
        Processes at most.
    tell : callable
        Told of each event but the end of a job.
    stage : str
        Part of the run that the tasks are.
    begun : callable
        Called in each process with its number, before anything else: to have it use a card of its own.

    Raises
    ------
    WorkerFailed
        If something other than an implementation raised, or a process died.
    """
    team: dict[Connection, _Member] = {}
    waiting = batches(tasks, range(len(tasks)))
    try:
        for number, batch in enumerate(itertools.islice(waiting, workers)):
            process = WorkerProcess(number, tasks, team, begun)
            team[process.connection] = _Member(process, batch)
            _give(process, tasks, batch, tell, stage)
        yield from _collected(tasks, team, waiting, tell, stage)
        for member in team.values():
            member.process.close()
    finally:
        for member in team.values():
            member.process.end()


class WorkerProcess:
    """A forked process that runs those of some tasks whose numbers it is given.

    Parameters
    ----------
    number : int
        Its number.
    tasks : sequence of Task
        All that it may be given.
    others : collection of Connection
        The ends of other workers that this process holds.
    begun : callable
        Called in the process with its number, before anything else.
    """

    def __init__(
        self, number: int, tasks: Sequence[Task], others: Collection[Connection], begun: Callable[[int], None]
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.number = number
        self.connection, theirs = context.Pipe()
        not_theirs = [self.connection, *others]  # a worker that held these would never see that its parent is gone
        self._process: BaseProcess = context.Process(
            target=_work, args=(theirs, tasks, not_theirs, begun, number), daemon=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
            self._process.start()
        theirs.close()

    def give(self, batch: Sequence[int]) -> None:
        """Have it run tasks, one after the other."""
        self.connection.send_bytes(json.dumps(batch).encode())

    def received(self, job: Job) -> dict[str, Any]:
        """Return what it says of the task of a job, for which this waits.

        Raises
        ------
        WorkerFailed
            If something other than an implementation raised, or the process died; its ``task`` is not set.
        DeviceLost
            If it gets no known answer from its device.
        """
        try:
            return _received(self.connection, self._process, job)
        except DeviceLost as error:
            error.worker = self.number
            raise

    def close(self) -> None:
        """Have it end by itself; one that takes too long is ended."""
        self.connection.close()
        self._process.join(_CLOSING)
        self.end()

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()
        self.connection.close()


class _Member(NamedTuple):
    """A worker and the numbers of its tasks that have not ended, the one that runs first."""

    process: WorkerProcess
    left: tuple[int, ...]


def _give(worker: WorkerProcess, tasks: Sequence[Task], batch: Sequence[int], tell: Listener, stage: str) -> None:
    worker.give(batch)
    tell(JobStarted(tasks[batch[0]].job, stage))


def _collected(
    tasks: Sequence[Task],
    team: dict[Connection, _Member],
    waiting: Iterator[tuple[int, ...]],
    tell: Listener,
    stage: str,
) -> Iterator[Result]:
    """Yield results and give each worker its next tasks; after a failure none are given out any more."""
    busy: set[Connection] = set(team)
    defect: BaseException | None = None
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)  # noqa: S101 - what wait was given
            process, (index, *left) = team[ready]
            try:
                message = process.received(tasks[index].job)
            except (WorkerFailed, KeyboardInterrupt, DeviceLost) as error:
                if isinstance(error, WorkerFailed):
                    error.task = index
                defect = defect or error
                busy.remove(ready)
                continue
            if "judged" in message:
                tell(CasesJudged(tasks[message["task"]].job, message["judged"], stage))
                continue
            following = tuple(left) or next(waiting, ()) * (defect is None)
            if not following:
                busy.remove(ready)
            else:
                team[ready] = _Member(process, following)
                if left:
                    tell(JobStarted(tasks[following[0]].job, stage))
                else:
                    _give(process, tasks, following, tell, stage)
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


def _work(
    connection: Connection,
    tasks: Sequence[Task],
    not_ours: Sequence[Connection],
    begun: Callable[[int], None],
    number: int,
) -> None:
    """The worker: it runs the tasks whose numbers it gets until the connection is closed."""
    for other in not_ours:
        other.close()
    begin()
    begun(number)
    if tasks[0].budget.isolation is not None:
        signal.signal(signal.SIGTERM, _end)  # it runs nothing of the implementation, and can end what does
    try:
        with contextlib.closing(TaskRunner(tasks)) as runner:
            while True:
                batch = json.loads(connection.recv_bytes())
                places = {tasks[index].job.name: index for index in batch}
                for index in batch:
                    _send(connection, _message(runner, index, connection, places))
    except (EOFError, ConnectionError, _Ended):
        return


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _message(runner: TaskRunner, index: int, connection: Connection, places: Mapping[str, int]) -> dict[str, Any]:
    """Run a task and return its message, also where it fails; ``places`` are those of its batch, by name."""
    told = time.monotonic()

    def judged(outcome: Outcome) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            _send(connection, {"judged": outcome.cases, "task": places[outcome.job.name]})

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
