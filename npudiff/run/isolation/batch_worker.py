"""The batch worker: a process that runs whole jobs, and exits when the device cannot be trusted any more.

It sends no message per case. The supervisor watches it from outside: each case is in the journal before it runs, and
the time at which it began is in shared memory.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import struct
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from npudiff.judge.judge import LocalJudge
from npudiff.model.anything import AnyCase
from npudiff.model.case import dumps, loads
from npudiff.model.component import Comparison, ImplementationRaised, NotApplicable, Passed
from npudiff.model.faults import RemoteError
from npudiff.model.job import Job, Outcome
from npudiff.run.engine import run_case, run_job
from npudiff.run.guidance import guide_of
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.journal import Journal
from npudiff.run.isolation.lingering import Lingering
from npudiff.run.isolation.worker import probe_device, serve
from npudiff.run.messages import Task, outcome_to_message

_TIME = struct.Struct("d")
"""Seconds, negative while no case runs. Eight aligned bytes are stored at once, so no reader sees half of them."""


class Clock:
    """The time since which a case runs, or no case does, in memory that is shared over a fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.end()

    def begin(self) -> None:
        """A case begins."""
        _TIME.pack_into(self._memory, 0, time.monotonic())

    def end(self) -> None:
        """A case has ended, or something else has begun."""
        _TIME.pack_into(self._memory, 0, -time.monotonic())

    def left(self, run: float, between: float) -> float:
        """Return the seconds left: of ``run`` for the case that runs, or of ``between`` while no case does."""
        (since,) = _TIME.unpack_from(self._memory, 0)
        return float(abs(since) + (run if since > 0 else between) - time.monotonic())


class BatchJudge:
    """A judge in this process that journals each case, and ends the process when the device cannot be trusted.

    Parameters
    ----------
    job : Job
        Whose cases.
    clock : Clock
        Told when a case begins and ends.
    journal : Journal
        Told which case.
    leave : callable
        Ends the process, with what was seen.
    """

    def __init__(self, job: Job, clock: Clock, journal: Journal, leave: Callable[[RemoteError], NoReturn]) -> None:
        self._job, self._clock, self._journal, self._leave = job, clock, journal, leave
        self._local = LocalJudge(job)

    @property
    def case(self) -> AnyCase:
        """What was judged last."""
        return self._local.case

    def begin(self) -> None:
        """Forget how far a trace was walked."""
        self._local.begin()

    def check(self, case: AnyCase, *, thorough: bool = True) -> Comparison | Passed:
        """Judge a case here; do not return if it leaves the device unusable."""
        del thorough
        number = self._journal.begin(self._job.name, dumps(case))
        self._clock.begin()
        try:
            verdict = self._local.check(case)
        except NotApplicable:
            self._end(number, "not applicable")
            raise
        except ImplementationRaised as error:
            remote = RemoteError.of(error.__cause__ or error)
            if remote.kind.ends_worker or (remote.kind.needs_probe and not self._still_good()):
                self._leave(remote)
            self._end(number, remote.kind.value)
            raise ImplementationRaised(str(remote)) from remote
        self._end(number, "holds" if verdict.holds else "wrong value")
        return verdict

    def _still_good(self) -> bool:
        self._clock.begin()  # the question has the time of a case, and does not share it
        return probe_device(self._job.subject.target)

    def _end(self, number: int, word: str) -> None:
        self._clock.end()
        self._journal.end(number, word)

    def close(self, outcome: Outcome) -> None:
        """Add what is known besides; the journal belongs to the batch worker."""
        self._local.close(outcome)


def batch_worker_main(
    tasks: Sequence[Task], clock: Clock, journal: Journal, connection: Connection, shared: SharedTensors
) -> NoReturn:
    """Answer the supervisor: run the task of a number, or single cases of several tasks.

    Parameters
    ----------
    tasks : sequence of Task
        All that there are.
    clock, journal
        Where it is said what is being run.
    connection : Connection
        Questions come in, and answers go out.
    shared : SharedTensors
        Not used: the findings are written here.
    """
    del shared
    lingering = Lingering()

    def leave(error: RemoteError) -> NoReturn:
        connection.send_bytes(json.dumps({"verdict": "left", "text": str(error)}).encode())
        os._exit(0)

    def fails(index: int, text: str) -> bool:
        job = tasks[index].job
        case = loads(job.subject.component.case_type, text)
        return run_case(job, case, judge=BatchJudge(job, clock, journal, leave)).failure is not None

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if "probe" in question:
            return {"verdict": "probed", "good": probe_device(tasks[0].job.subject.target)}
        if "cases" in question:
            return {"verdict": "judged", "fails": [fails(*one) for one in question["cases"]][-1]}
        task = tasks[question["task"]]
        job, budget = (
            task.job,
            dataclasses.replace(task.budget, isolation=None, fallback_seed=question["fallback_seed"]),
        )
        guide = guide_of(job, budget)
        judge = BatchJudge(job if guide is None else guide.job, clock, journal, leave)
        outcome = run_job(job, budget, judge=judge, guide=guide)
        lingering.settle()
        if outcome.failure is not None:
            _confirm(outcome, connection)
            clock.end()
        message = outcome_to_message(outcome, task.kept(outcome))
        journal.settle()
        return {"verdict": "ran", "message": message}

    serve(connection, answer)


def _confirm(outcome: Outcome, connection: Connection) -> None:
    """Ask the supervisor how often the smallest case fails alone, and what that depends on.

    If it does not, this process is killed instead of an answer.
    """
    failure = outcome.failure
    assert failure is not None  # noqa: S101 - who calls this has seen it
    text = "wrong value" if failure.error is None else str(failure.error)
    question = {"verdict": "fails", "case": dumps(failure.case), "kind": kind_of_failure(outcome), "text": text}
    connection.send_bytes(json.dumps(question).encode())
    answer = json.loads(connection.recv_bytes())
    failed, runs = answer["alone"]
    outcome.alone, outcome.others, outcome.region = (failed, runs), answer["others"], answer["region"]


def kind_of_failure(outcome: Outcome) -> str:
    """Return what kind of failure an outcome has: the name of a ``faults.Kind``, or of a verdict."""
    error = None if outcome.failure is None else outcome.failure.error
    return error.kind.name if isinstance(error, RemoteError) else outcome.verdict.name
