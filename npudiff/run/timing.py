"""How long an implementation takes beside one that is built in, on the same cases.

A ratio is of two numbers that were measured in turns, on one machine, in processes of the same kind. On a simulator it
says how long the simulation takes, and nothing about a device.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Comparison, Property, Subject
from npudiff.model.faults import Faulted
from npudiff.model.implementation import Implementation, Target
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.discovery import built_in_implementations
from npudiff.run.engine import run_job
from npudiff.run.isolation.process import WorkerDefect, WorkerProcess
from npudiff.run.isolation.worker import serve
from npudiff.text import counted

DRAWN, TIMED = 24, 5
"""Cases that are drawn, and those with the largest inputs, that are timed."""

LEAST_RUNS, MOST_RUNS = 3, 50
LEAST_SECONDS, MOST_SECONDS = 0.05, 30.0
"""Times that each is called, the time after which no other call is made, and no other case. The fastest call counts."""


@dataclass(frozen=True)
class TimedCase:
    """A case on which two implementations were timed."""

    case: str
    """The case, in the component's words."""
    seconds: float
    beside: str
    """Name of the implementation that is built in."""
    beside_seconds: float

    @property
    def ratio(self) -> float:
        """Above 1 the implementation is slower than what is built in."""
        return self.seconds / self.beside_seconds


def ratio_of(cases: Sequence[TimedCase]) -> float | None:
    """Return the geometric mean of the ratios; None without a case."""
    return math.exp(sum(math.log(one.ratio) for one in cases) / len(cases)) if cases else None


def timing_line(names: tuple[str, str], cases: Sequence[TimedCase], target: Target) -> str:
    """Say how long an implementation takes, in all cases and in the slowest one, and of what these seconds are."""
    ratio = ratio_of(cases)
    if ratio is None:
        return f"{'.'.join(names)} was not timed"
    beside = ", ".join(dict.fromkeys(one.beside for one in cases))
    line = f"{'.'.join(names)} takes {ratio:.2f} times as long as {beside}, on {counted(len(cases), 'case')}"
    slowest = max(cases, key=lambda one: one.ratio)
    if len(cases) > 1:
        least = min(one.ratio for one in cases)
        line += f" ({least:.2f} to {slowest.ratio:.2f}; most on {slowest.case})"
    return line if target.name == "npu" else f"{line}; seconds of this machine's processor, and not of a card"


def built_in_beside(component: str) -> list[Implementation]:
    """Return what an implementation of a component is timed beside: those for a device first, nothing wrong."""
    right = [item for item in built_in_implementations() if item.component == component and item.wrong is None]
    return sorted((item for item in right if item.factory is None), key=lambda item: not item.on_device)


def timed_beside(job: Job, others: Sequence[Implementation], *, seed: int, until: float) -> list[TimedCase]:
    """Time the implementation of a job.

    Parameters
    ----------
    job : Job
        Any of its jobs: cases are drawn within its constraints.
    others : sequence of Implementation
        The first that supports a case is timed beside it.
    seed : int
        Seed of the draws.
    until : float
        Time of ``time.monotonic()`` after which no other case is timed.
    """
    component, target = job.subject.component, job.subject.target
    if component.history is not None:
        return []
    timed = []
    with target.activate():
        for case in _largest(job, seed):
            other = next((item for item in others if _supports(job.subject, item, case)), None)
            if other is not None and time.monotonic() < until:
                inputs = component.inputs(case)
                mine, theirs = _in_turns((job.subject.implementation, other), inputs, target, until)
                timed.append(TimedCase(component.describe(case), mine, other.name, theirs))
    return timed


def timed_apart(outcomes: Sequence[Outcome], seed: int | None) -> dict[tuple[str, str], list[TimedCase]]:
    """Time each implementation that is not built in and of which everything holds, in a process that may die of it.

    Parameters
    ----------
    outcomes : sequence of Outcome
        What was seen of them.
    seed : int or None
        Seed of the draws, if there is one.
    """
    jobs: dict[tuple[str, str], Job] = {}
    for outcome in outcomes:
        if not outcome.job.subject.implementation.built_in and outcome.cases:
            jobs.setdefault(outcome.job.subject.names, outcome.job)
    for outcome in outcomes:
        if outcome.found:
            jobs.pop(outcome.job.subject.names, None)
    return {names: _apart(job, 1 if seed is None else seed) for names, job in jobs.items()}


def _apart(job: Job, seed: int) -> list[TimedCase]:
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        del question
        others = built_in_beside(job.subject.component.name)
        timed = timed_beside(job, others, seed=seed, until=time.monotonic() + MOST_SECONDS)
        return {"verdict": "timed", "cases": [dataclasses.astuple(one) for one in timed]}

    process = WorkerProcess(lambda connection, _: serve(connection, answer))
    try:
        said = process.ask({}, 2 * MOST_SECONDS)
    except (Faulted, WorkerDefect):  # it held a moment ago, and says nothing of its time now
        return []
    finally:
        process.kill()
    return [TimedCase(*one) for one in said["cases"]]


def _supports(subject: Subject, item: Implementation, case: AnyCase) -> bool:
    return replace(subject, implementation=item).reason_against(case) is None


def _largest(job: Job, seed: int) -> list[AnyCase]:
    """Draw cases; return those with the largest inputs, the largest first."""
    drawn: list[AnyCase] = []

    def collect(subject: Subject, case: AnyCase) -> Comparison:
        del subject
        drawn.append(case)
        return Comparison(())

    collecting = Property("timed", "draws cases", collect)
    run_job(replace(job, prop=collecting), Budget(examples=DRAWN, seed=seed, shrink=False))
    inputs = job.subject.component.inputs
    sizes = [sum(_bytes(inputs(case))) for case in drawn]
    order = sorted(range(len(drawn)), key=lambda place: -sizes[place])
    return [drawn[place] for place in order[:TIMED]]


def _bytes(value: Any) -> Iterator[int]:  # noqa: ANN401 - inputs of any component
    """Yield the sizes of tensors in inputs."""
    if hasattr(value, "untyped_storage"):
        yield value.nbytes
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _bytes(getattr(value, field.name))


def _in_turns(items: Sequence[Implementation], inputs: AnyInputs, target: Target, until: float) -> list[float]:
    """Return the shortest time of each implementation, of calls in turns."""
    best, spent, runs = [math.inf] * len(items), 0.0, 0
    while runs < LEAST_RUNS or (runs < MOST_RUNS and spent < LEAST_SECONDS and time.monotonic() < until):
        for place, item in enumerate(items):
            began = time.perf_counter()
            item(inputs, target)
            target.synchronize()
            took = time.perf_counter() - began
            best[place], spent = min(best[place], took), spent + took
        runs += 1
    return best
