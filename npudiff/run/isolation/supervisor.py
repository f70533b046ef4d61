"""The supervisor: it runs jobs in a batch worker, and runs a job again, each case in a worker, when that fails.

Most jobs end alike in one process and in many, so a job costs one message. Where the batch worker crashes, hangs or
reports a failure that the case alone does not show, ``IsolatedJudge`` finds the case at fault.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from npudiff.errors import DeviceLost
from npudiff.model.case import dumps, loads
from npudiff.model.faults import Faulted, Kind, RemoteError
from npudiff.model.job import Budget, Failure, Isolation, Job, Outcome, Poisoning, Verdict
from npudiff.run.engine import run_case, run_job
from npudiff.run.explain import explain
from npudiff.run.isolation.batch_worker import Clock, batch_worker_main, kind_of_failure
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.journal import Journal
from npudiff.run.isolation.judge import SUSPECTS, IsolatedJudge, poisoner
from npudiff.run.isolation.process import WorkerDefect, WorkerProcess, answering
from npudiff.run.isolation.worker import serve
from npudiff.run.messages import Task, outcome_to_message, with_seed

Begun = tuple[str, str]
"""Name of a job, and a case as JSON."""

LONGER = 3.0
"""A job that is run again has this many times the seconds that the batch worker took to come to the same case."""

AT_LEAST = 10.0
"""The least seconds of a job that is run again."""


class UntrustedResult(Exception):
    """The result of a batch worker, or its silence, cannot be trusted.

    Parameters
    ----------
    text : str
        What was seen.
    case : str
        In which case, as JSON; empty for the one that was run last.
    """

    def __init__(self, text: str, case: str = "") -> None:
        super().__init__(text)
        self.case = case


class BatchProcess(WorkerProcess):
    """A batch worker as its parent sees it: each case has a time limit, and so has the time between cases.

    Parameters
    ----------
    tasks : sequence of Task
        What it may be asked for.
    isolation : Isolation
        How long a case may take.
    journal : Journal
        Where it writes what it begins.
    """

    def __init__(self, tasks: Sequence[Task], isolation: Isolation, journal: Journal) -> None:
        self._clock, self._run = Clock(), isolation.run
        super().__init__(functools.partial(batch_worker_main, tasks, self._clock, journal))

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a question; ``seconds`` may pass between cases."""
        self._clock.end()
        return super().ask(question, seconds)

    def _await(self, seconds: float) -> None:
        while not self._answers(min(self._run, self._clock.left(self._run, seconds))):  # a case may begin meanwhile
            if self._clock.left(self._run, seconds) <= 0:
                raise self.hangs("no answer in time")


class Supervisor:
    """Runs tasks in a batch worker, and starts another one when it is gone.

    Parameters
    ----------
    tasks : sequence of Task
        All that may have to be run, with the same isolation.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        isolation = tasks[0].budget.isolation
        if isolation is None:
            raise ValueError("the tasks are not to be isolated")
        self._tasks, self._isolation = tasks, isolation
        self._journal = Journal(isolation.journal)
        self._batch: BatchProcess | None = None
        self._unreported = False
        self._hanging: dict[tuple[str, str], str] = {}

    def run(self, index: int) -> dict[str, Any]:
        """Run a task, and tell its outcome as ``messages.outcome_to_message`` does.

        Raises
        ------
        DeviceLost
            If two fresh processes do not get the known answer from the device.
        WorkerDefect
            If npudiff itself, or a component, raises.
        """
        task = self._tasks[index]
        job, budget = task.job, task.budget
        if (seen := self._hanging.get(job.subject.names)) is not None:
            reasons = Counter({f"the first call of {seen} has not ended, and each would take its time again": 1})
            return outcome_to_message(Outcome(job, not_applicable=reasons, verdict=Verdict.NOT_APPLICABLE), [])
        budget = with_seed(budget)
        memory, began = _Memory(job, budget), time.monotonic()
        try:
            return self._run_in_batch(index, budget)
        except UntrustedResult as doubt:
            self._unreported = True
            self._end_batch()
            memory.restore()
            outcome = self._again(job, _longer(budget, time.monotonic() - began), doubt)
            self._explain(budget, outcome)
            given_first = outcome.remembered or budget.explicit_cases  # one that hangs may be one of very many
            if outcome.cases == 1 and not given_first and _timed_out(outcome.first_failure):
                self._hanging[job.subject.names] = job.prop.name
            message = outcome_to_message(outcome, task.kept(outcome))
            self._journal.forget()
            self._unreported = False
            return message
        except BaseException:  # interrupted, say: its answer would be taken for that of the next task
            self._end_batch()
            raise

    def close(self) -> None:
        """End the batch worker, and the journal."""
        self._end_batch()
        self._journal.close(keep=self._unreported)

    def _run_in_batch(self, index: int, budget: Budget) -> dict[str, Any]:
        """Run a task in the batch worker; raises ``UntrustedResult`` if another case may be at fault."""
        if self._batch is None:
            self._batch = self._started()
        answer = self._asked({"task": index, "fallback_seed": budget.fallback_seed})
        if answer["verdict"] == "fails":
            self._unreported = True  # should the device be lost meanwhile
            task = self._tasks[index]
            alone = self._run_alone(task.job, answer["case"])
            if kind_of_failure(alone) != answer["kind"]:
                raise UntrustedResult(answer["text"], answer["case"])
            self._explain(task.budget, alone)
            self._unreported = False
            answer = self._asked({"alone": (1, 1), "others": alone.others, "region": alone.region})
        message: dict[str, Any] = answer["message"]
        return message

    def _asked(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._batch is not None  # noqa: S101 - it was started
        try:
            answer = self._batch.ask(question, self._isolation.warm_up)
        except Faulted as fault:
            raise UntrustedResult(f"{fault.kind.value}: {fault}") from None
        except WorkerDefect as defect:  # it is real if it is seen in another process as well
            raise UntrustedResult(str(defect).strip().rpartition("\n")[2]) from None
        if answer["verdict"] == "left":
            raise UntrustedResult(answer["text"])
        return answer

    def _run_alone(self, job: Job, case: str) -> Outcome:
        """Run a case in a process that has run nothing else."""
        alone = run_case(job, loads(job.subject.component.case_type, case), self._isolation)
        alone.settle()
        return alone

    def _explain(self, budget: Budget, outcome: Outcome) -> None:
        """Find out what a failure depends on; what cannot be found out any more does not cost the finding."""
        if budget.explains and not outcome.poisonings:
            with contextlib.suppress(DeviceLost, WorkerDefect):  # of a case that nobody drew; the next job says if more
                explain(outcome, self._judge_of)

    @contextlib.contextmanager
    def _judge_of(self, job: Job) -> Iterator[IsolatedJudge]:
        """Give a judge of a job whose cases run in processes of their own, and in no journal."""
        judge = IsolatedJudge(job, replace(self._isolation, journal=None))
        try:
            yield judge
        finally:
            judge.close(Outcome(job))

    def _again(self, job: Job, budget: Budget, doubt: UntrustedResult) -> Outcome:
        """Run a job with each case in a worker; report what the batch worker saw even if it does not repeat."""
        begun = self._journal.begun()  # of all jobs of the batch worker
        outcome = run_job(job, budget)
        if outcome.failure is not None or outcome.poisonings:
            return outcome
        text = doubt.case or next((case for name, case in reversed(begun) if name == job.name), "")
        if not text:
            raise WorkerDefect(f"the process that ran {job.name} ended before its first case: {doubt}")
        alone = run_case(job, loads(job.subject.component.case_type, text), self._isolation)
        if alone.failure is not None or alone.poisonings:
            return replace(
                alone, cases=outcome.cases + 1, features=outcome.features, not_applicable=outcome.not_applicable
            )
        earlier = itertools.takewhile(lambda one: one[0] != job.name, begun)
        culprit = None
        with contextlib.suppress(DeviceLost):  # what was seen is told all the same; the next job says that it is lost
            culprit = self._poisoner(list(earlier)[-SUSPECTS:], (job.name, text))
        after = "" if culprit is None else f"; after {culprit[0]}: {culprit[1]}"
        outcome.poisonings.append(Poisoning("", text, f"{doubt}{after}"))
        return outcome

    def _poisoner(self, before: Sequence[Begun], victim: Begun) -> Begun | None:
        """Return the case of an earlier job after which the victim fails; None if there is none."""
        places = {job.name: index for index, (job, _, _) in enumerate(self._tasks)}

        def fails_after(some: Sequence[Begun]) -> bool:
            self._batch = self._started()
            try:
                cases = [(places[name], text) for name, text in (*some, victim)]
                return bool(self._asked({"cases": cases})["fails"])
            except UntrustedResult:
                return self._journal.begun()[-1:] == [victim]
            finally:
                self._end_batch()

        return poisoner(before, fails_after)

    def _started(self) -> BatchProcess:
        def made() -> BatchProcess:
            return BatchProcess(self._tasks, self._isolation, self._journal)

        self._journal.forget()
        return answering(made, self._tasks[0].job.subject.target, self._isolation.warm_up)

    def _end_batch(self) -> None:
        if self._batch is not None:
            self._batch.kill()
            self._batch = None


def _timed_out(failure: Failure | None) -> bool:
    error = None if failure is None else failure.error
    return isinstance(error, RemoteError) and error.kind is Kind.TIMED_OUT


class SecondLook:
    """A process that has run no job yet, in which a supervisor runs those again that have failed where others ran.

    Parameters
    ----------
    tasks : sequence of Task
        All that there are.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._process = WorkerProcess(functools.partial(_second_look, tasks))

    def at(self, index: int, budget: Budget, outcome: Outcome) -> dict[str, Any]:
        """Run a task that has failed again, and tell its outcome; what does not repeat is told as well."""
        longer = _longer(budget, outcome.seconds)
        question = {
            "task": index,
            "fallback_seed": budget.fallback_seed,
            "seconds": longer.seconds,
            "examples": budget.examples,
            "explicit_cases": budget.explicit_cases,
        }
        message: dict[str, Any] = self._process.ask(question, _NO_END)["message"]
        if message["failure"] is not None or message["poisonings"]:
            return message
        failure = outcome.failure
        assert failure is not None  # noqa: S101 - it is why somebody looks again
        text = "wrong value" if failure.error is None else str(failure.error)
        outcome.alone = (0, 1)
        outcome.poisonings.append(Poisoning("", dumps(failure.case), f"{text}; only after other jobs of the process"))
        return outcome_to_message(outcome, self._tasks[index].kept(outcome))

    def close(self) -> None:
        """End the process."""
        self._process.kill()


_NO_END = 1e6
"""Seconds that a second look may take: the supervisor has its own limits, of which it makes findings."""


def _second_look(tasks: Sequence[Task], connection: Connection, shared: SharedTensors) -> NoReturn:
    """Run tasks under a supervisor, with the seeds that are asked for."""
    del shared

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        index = question["task"]
        job, budget, keep = tasks[index]
        asked = {name: question[name] for name in ("fallback_seed", "seconds", "examples")}
        given = tuple(question["explicit_cases"])
        again = replace(budget, isolation=budget.second_look, until=None, explicit_cases=given, **asked)
        task = Task(job, again, keep)
        with contextlib.closing(Supervisor([task])) as supervisor:
            return {"verdict": "ran", "message": supervisor.run(0)}

    serve(connection, answer)


class _Memory:
    """The example database of a job: a run that does not count must add nothing to it."""

    def __init__(self, job: Job, budget: Budget) -> None:
        self._folder = budget.example_database_of(job)
        self._was_there = self._folder is not None and self._folder.is_dir()

    def restore(self) -> None:
        """Take back what was added, if there was nothing before."""
        if self._folder is not None and not self._was_there:
            shutil.rmtree(self._folder, ignore_errors=True)


def _longer(budget: Budget, seconds: float) -> Budget:
    """Return a budget with time enough to come to a case that was reached after so many seconds."""
    if budget.seconds is None and budget.until is None:
        return budget
    return replace(budget, seconds=LONGER * seconds + AT_LEAST, until=None)
