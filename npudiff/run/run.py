"""A run: tasks in this process or in several workers, and one stream of events for its listeners."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType

from npudiff.model.job import Outcome
from npudiff.run import guardian
from npudiff.run.events import CasesJudged, Event, JobEnded, JobStarted, Listener, RunEnded
from npudiff.run.messages import Task
from npudiff.run.workers import Result, TaskRunner, run_in_workers


class Run:
    """Runs tasks and tells listeners of each event, in their order; a context manager, whose end is an event too.

    Parameters
    ----------
    workers : int
        Processes in which tasks run; 1 for this one.
    listeners : sequence of callable
        Told of each event, in this process.
    """

    def __init__(self, workers: int, listeners: Sequence[Listener]) -> None:
        self._workers, self._listeners = workers, listeners

    def __enter__(self) -> Run:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell that the run is over."""
        self._tell(RunEnded(error))

    def run(
        self,
        tasks: Sequence[Task],
        *,
        stage: str = "",
        until: float | None = None,
        enough: Callable[[Outcome], bool] = lambda _: False,
    ) -> None:
        """Run tasks.

        Parameters
        ----------
        tasks : sequence of Task
            What is run.
        stage : str
            Part of the run that they are.
        until : float or None
            Time of ``time.monotonic()`` after which no other one is begun.
        enough : callable
            Whether nothing else is to be known after an outcome; what still runs is ended.

        Raises
        ------
        WorkerFailed
            If something other than an implementation raised in a worker, or a worker died.
        DeviceLost
            If a fresh process gets no known answer from the device.
        """
        results = run_in_workers if self._workers > 1 else _run_here
        with contextlib.closing(results(tasks, self._workers, self._tell, stage)) as ended:
            for index, outcome, kept in ended:
                self._tell(JobEnded(index, outcome, tuple(kept), stage))
                if enough(outcome) or (until is not None and time.monotonic() > until):
                    break

    def _tell(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            guardian.begins(event.job.name)
        for listener in self._listeners:
            listener(event)


def _run_here(tasks: Sequence[Task], workers: int, tell: Listener, stage: str) -> Generator[Result, None, None]:
    """Run tasks one after the other in this process, which isolated ones leave to another."""
    del workers

    def judged(outcome: Outcome) -> None:
        tell(CasesJudged(outcome.job, outcome.cases, stage))

    with contextlib.closing(TaskRunner(tasks)) as runner:
        for index, task in enumerate(tasks):
            tell(JobStarted(task.job, stage))
            yield index, *runner.run(index, judged)
