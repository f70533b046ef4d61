"""A judge whose cases run in a worker: a crash or a hang becomes a failure of the case at fault."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from npudiff.model.anything import AnyCase
from npudiff.model.case import dumps, loads
from npudiff.model.component import Comparison, ImplementationRaised, NotApplicable, Passed
from npudiff.model.drift import sums_from_plain
from npudiff.model.faults import Faulted, Kind, RemoteError
from npudiff.model.job import Isolation, Job, Outcome, Poisoning
from npudiff.run.isolation.ipc import unpack_comparison
from npudiff.run.isolation.journal import PASSED, Journal
from npudiff.run.isolation.process import WorkerProcess, answering
from npudiff.run.isolation.worker import worker_main

ALONE = 3
"""Times that a faulting case is run alone, each time in a fresh worker, to tell whether it always faults."""

SUSPECTS = 32
"""Earlier cases of the same worker that are suspected of poisoning the device."""

PROBE_SECONDS = 30.0

Answer = dict[str, Any]
Before = TypeVar("Before")


class IsolatedJudge:
    """Judges cases of one job in a worker.

    Parameters
    ----------
    job : Job
        Whose cases.
    isolation : Isolation
        Clock and journal.

    Attributes
    ----------
    case : object
        What was judged last.
    poisonings : list of Poisoning
        Cases that spoiled the device for others; the others were judged again, alone.
    alone : tuple of int
        Of the last fault, how often the case failed alone, and of how many times.
    """

    def __init__(self, job: Job, isolation: Isolation) -> None:
        self._job, self._isolation = job, isolation
        self._journal = None if isolation.journal is None else Journal(isolation.journal)
        self._worker: WorkerProcess | None = None
        self._before: deque[str] = deque(maxlen=SUSPECTS)
        self._failed = False
        self.case: Any = None
        self.poisonings: list[Poisoning] = []
        self.alone = (0, 0)

    def begin(self) -> None:
        """Nothing: the worker sees where a trace does not go on."""

    def check(self, case: AnyCase, *, thorough: bool = True) -> Comparison | Passed:
        """Judge a case in the worker.

        Raises
        ------
        ImplementationRaised
            If it raises there, kills the process or the device, or does not come back. The cause says which.
        DeviceLost
            If a fresh worker does not get the known answer from the device.
        """
        self.case, text = case, dumps(case)
        number = 0 if self._journal is None else self._journal.begin(self._job.name, text)
        try:
            verdict = self._verdict(self._judged(text, thorough=thorough))
        except (ImplementationRaised, NotApplicable) as error:
            self._end(number, _word(error))
            raise
        self._end(number, "holds" if verdict.holds else "wrong value")
        return verdict

    def _end(self, number: int, word: str) -> None:
        self._failed = self._failed or word not in PASSED or bool(self.poisonings)
        if self._journal is not None:
            self._journal.end(number, word)

    def close(self, outcome: Outcome) -> None:
        """End the worker and the journal, and add what is known of faults."""
        self._end_worker()
        outcome.isolated = True
        outcome.alone, outcome.poisonings = self.alone, self.poisonings
        if self._journal is not None:
            outcome.journal = self._journal.close(keep=self._failed)

    def _judged(self, text: str, *, thorough: bool) -> Answer:
        """Judge a case; one that is wrong after others is judged again alone, which then counts."""
        self.alone = (0, 0)
        before = list(self._before) if self._worker is not None else []
        answer = self._ask(text)
        faulted = answer["verdict"] == "raised" and Kind[answer["kind"]].ends_worker
        if not (faulted or (answer["verdict"] == "differs" and before)):
            return answer
        alone = [*([] if before else [answer]), *self._runs_alone(text, ALONE if faulted and thorough else 1, before)]
        failed = [one for one in alone if _fails(one)]
        self.alone = (len(failed), len(alone))
        if failed:
            return failed[0]
        if thorough:
            error = str(_error(answer)) if faulted else "wrong value"
            self.poisonings.append(Poisoning(self._poisoner(before, text), text, error))
        return alone[-1]

    def _ask(self, text: str) -> Answer:
        """Have a case judged; where the worker does not survive it, or says that the device did not, it is ended."""
        if self._worker is None:
            self._worker = self._started()
            self._before.clear()
        try:
            answer = self._worker.ask({"case": text}, self._isolation.run)
        except Faulted as fault:
            self._worker = None
            return _failed(fault)
        if answer["verdict"] == "differs":
            answer["comparison"] = unpack_comparison(answer, self._worker.shared)
        self._before.append(text)
        if answer["verdict"] == "raised" and not self._still_good(answer):
            answer = _failed(Faulted(Kind.FAULT, f"{answer['name']}: {answer['text']}; then no known answer"))
        if answer["verdict"] == "raised" and Kind[answer["kind"]].ends_worker:
            self._end_worker()
        return answer

    def _still_good(self, answer: Answer) -> bool:
        """Whether the worker may go on after an answer that is a refusal: if the device gives a known answer."""
        if not Kind[answer["kind"]].needs_probe or self._worker is None:
            return True
        with contextlib.suppress(Faulted):
            if self._worker.ask({"probe": True}, PROBE_SECONDS)["good"]:
                return True
            self._worker.kill()
        self._worker = None
        return False

    def _runs_alone(self, text: str, runs: int, before: Sequence[str]) -> Iterator[Answer]:
        """Judge a case alone, as often as it takes to have seen it so many times; after a hang once is enough."""
        for _ in range(runs if before else runs - 1):
            answer = self._alone([text])
            yield answer
            if answer.get("kind") == Kind.TIMED_OUT.name:
                return

    def _alone(self, texts: Sequence[str]) -> Answer:
        """Judge cases one after the other in a fresh worker, and return what the last one comes to."""
        self._end_worker()
        answer: Answer = {}
        for text in texts:
            if answer and self._worker is None:
                return {"verdict": "not reached"}  # one of those before it faults by itself
            answer = self._ask(text)
        self._end_worker()
        return answer

    def _poisoner(self, before: Sequence[str], text: str) -> str:
        """Return the last case before it after which a case fails; empty if it does not fail after them at all."""
        return poisoner(before, lambda some: _fails(self._alone([*some, text]))) or ""

    def _started(self) -> WorkerProcess:
        """Return a new worker whose device gives the known answer."""
        life = functools.partial(worker_main, self._job)
        return answering(lambda: WorkerProcess(life), self._job.subject.target, self._isolation.warm_up)

    def _verdict(self, answer: Answer) -> Comparison | Passed:
        if "case" in answer:
            self.case = self._loaded(answer["case"])
        if answer["verdict"] == "holds":
            left_out = tuple(answer["left_out"])
            return Passed(answer["worst"], answer["exact"], sums_from_plain(answer["sums"]), left_out)
        if answer["verdict"] == "differs":
            comparison: Comparison = answer["comparison"]
            return comparison
        if answer["verdict"] == "not applicable":
            raise NotApplicable(answer["text"])
        error = _error(answer)
        raise ImplementationRaised(str(error)) from error

    def _loaded(self, text: str) -> AnyCase:
        return loads(self._job.subject.component.case_type, text)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def poisoner(before: Sequence[Before], fails_after: Callable[[Sequence[Before]], bool]) -> Before | None:
    """Return the last element such that something fails after it and those that follow; None if it never fails.

    It is found by bisection.
    """
    if not before or not fails_after(before):
        return None
    first, last = 0, len(before)  # it fails after before[first:], and not after before[last:]
    while last - first > 1:
        middle = (first + last) // 2
        if fails_after(before[middle:]):
            first = middle
        else:
            last = middle
    return before[first]


def _fails(answer: Answer) -> bool:
    return answer["verdict"] in ("raised", "differs")


def _failed(fault: Faulted) -> Answer:
    said = {"name": fault.kind.value, "text": str(fault), "kind": fault.kind.name, "frames": fault.frames}
    return {"verdict": "raised", **said}


def _error(answer: Answer) -> RemoteError:
    return RemoteError(answer["name"], answer["text"], Kind[answer["kind"]], answer.get("frames", ()))


def _word(error: Exception) -> str:
    if isinstance(error, NotApplicable):
        return "not applicable"
    cause = error.__cause__
    return cause.kind.value if isinstance(cause, RemoteError) else "exception"
