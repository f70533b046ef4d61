"""Jobs of one component and property together: what they have in common is drawn, built and answered once.

Each job judges as many cases as by itself, and cases as it would draw by itself. What another job has drawn takes the
place of an own draw where the two cannot be told apart: both lie within what either job draws from. A job that draws
from a part of what another does so needs no draws at all, as long as the other's suffice. Whatever fails is run once
more by itself, where its case becomes the smallest.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis.errors import Unsatisfiable

from npudiff.judge.judge import LocalJudge
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Component, ExpectedOutput
from npudiff.model.fingerprint import fingerprint
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.drawing import Fails, draw_cases, has_cases
from npudiff.run.engine import NO_CASE, CaseRun, Progress, Stop, conclude
from npudiff.run.messages import Task


@dataclass
class SharedCase:
    """A case, and the jobs that judge it."""

    case: AnyCase
    values: Mapping[str, Collection[Any]]
    """What it has of each axis."""
    takers: list[int]
    """Numbers of jobs; the first has drawn it."""


def batches(tasks: Sequence[Task], chosen: Collection[int]) -> Iterator[tuple[int, ...]]:
    """Yield the numbers of chosen tasks, those together that can be run so."""
    found: dict[object, list[int]] = {}
    for index, (job, budget, _) in enumerate(tasks):
        if index not in chosen:
            continue
        key = (id(job.subject.component), id(job.prop), id(job.subject.target)) if _shares(job, budget) else index
        found.setdefault(key, []).append(index)
    yield from map(tuple, found.values())


def _shares(job: Job, budget: Budget) -> bool:
    """Whether a job may have cases in common with others: not if there are some that it has to begin with."""
    remembers = bool(budget.explicit_cases) or has_cases(budget.example_database_of(job))
    return budget.together and job.subject.component.history is None and not job.prop.in_place and not remembers


def planned(jobs: Sequence[Job], budgets: Sequence[Budget]) -> list[SharedCase]:
    """Return the cases that jobs judge: of each as many as its budget says, or as there are."""
    axes = jobs[0].subject.component.axes
    inside = [[_inside(one, other, axes) for other in jobs] for one in jobs]
    widest_first = sorted(range(len(jobs)), key=lambda place: -sum(row[place] for row in inside))
    pool: list[SharedCase] = []
    for place in widest_first:
        _take(place, jobs, budgets[place], inside[place], pool)
    return pool


def _inside(one: Job, other: Job, axes: Mapping[str, Any]) -> bool:
    """Whether what a job draws is a part of what another does: its draws there are like its own."""
    return not other.subject.excluded and one.drawn_within.inside(other.drawn_within, axes)


def _take(place: int, jobs: Sequence[Job], budget: Budget, inside: Sequence[bool], pool: list[SharedCase]) -> None:
    """Give a job its cases: others' where it draws from a part of what they do, and else for one of its own each."""
    job = jobs[place]
    values = job.subject.component.values
    wanted = budget.examples or 0
    theirs: dict[int, deque[SharedCase]] = {}
    for shared in pool:
        if not _draws(job, shared.values):
            continue
        if not inside[shared.takers[0]]:
            theirs.setdefault(shared.takers[0], deque()).append(shared)
        elif wanted:
            shared.takers.append(place)
            wanted -= 1

    def drawn(case: AnyCase) -> None:
        its = values(case)
        other = next((one for one, left in theirs.items() if left and _draws(jobs[one], its)), None)
        if other is None:
            pool.append(SharedCase(case, its, [place]))
        else:
            theirs[other].popleft().takers.append(place)

    if wanted:
        with contextlib.suppress(Unsatisfiable):
            draw_cases(job, replace(budget, examples=wanted, shrink=False, example_database=None), drawn)


def _draws(job: Job, values: Mapping[str, Collection[Any]]) -> bool:
    """Whether a job draws cases with these values."""
    return job.drawn_within.allows(values) and not any(one.where.touches(values) for one in job.subject.excluded)


class _OneCase:
    """What was made of the case that is judged now, and of those that were derived from it."""

    def __init__(self, component: Component) -> None:
        self._made: dict[tuple[str, Any], Any] = {}
        self._expected: dict[int, Mapping[str, ExpectedOutput]] = {}
        self._fingerprints: dict[int, Mapping[str, tuple[object, ...]]] = {}
        self._of = component
        self.component = replace(
            component,
            inputs=self._once("inputs", component.inputs),
            values=self._once("values", component.values),
            features=self._once("features", component.features),
            reference=self._reference,
        )

    def forget(self) -> None:
        """Have everything made anew: of another case, or since somebody may have written into it."""
        self._made.clear()
        self._expected.clear()
        self._fingerprints.clear()

    def _once(self, name: str, made: Callable[[AnyCase], Any]) -> Callable[[AnyCase], Any]:
        def remembered(case: AnyCase) -> Any:  # noqa: ANN401 - as the component has it
            key = name, case
            if key not in self._made:
                self._made[key] = made(case)
            return self._made[key]

        return remembered

    def fingerprint(self, inputs: object) -> Mapping[str, tuple[object, ...]]:
        """Look once at inputs that were built here: a call after which they were not the same has them forgotten."""
        if not self._is_made(inputs):
            return fingerprint(inputs)
        if id(inputs) not in self._fingerprints:
            self._fingerprints[id(inputs)] = fingerprint(inputs)
        return self._fingerprints[id(inputs)]

    def _is_made(self, inputs: object) -> bool:
        """Whether inputs were built here, and so live as long as what is remembered of them."""
        return any(made is inputs for (name, _), made in self._made.items() if name == "inputs")

    def _reference(self, inputs: AnyInputs) -> Mapping[str, ExpectedOutput]:
        """Answer once for inputs that were built here; others are changed by those who ask."""
        if not self._is_made(inputs):
            return self._of.reference(inputs)
        if id(inputs) not in self._expected:
            self._expected[id(inputs)] = self._of.reference(inputs)
        return self._expected[id(inputs)]


def run_together(jobs: Sequence[Job], budgets: Sequence[Budget], progress: Progress = lambda _: None) -> list[Outcome]:
    """Run jobs of one component and property, each up to its first failure, which is left as it was drawn."""
    began = time.perf_counter()
    memory = _OneCase(jobs[0].subject.component)
    runs = [_run_of(job, budget, progress, memory) for job, budget in zip(jobs, budgets, strict=True)]
    spent = dict.fromkeys(range(len(jobs)), 0.0)
    with jobs[0].subject.target.activate():
        cases = planned(jobs, budgets)
        drawing = time.perf_counter() - began
        for shared in cases:
            memory.forget()
            for place in shared.takers:
                start = time.perf_counter()
                if runs[place].outcome.failure is None and not _holds(runs[place], shared.case):
                    memory.forget()  # what does not end as it should may have written into what all are given
                spent[place] += time.perf_counter() - start
    judged = {place for shared in cases for place in shared.takers}
    for place, (job, run) in enumerate(zip(jobs, runs, strict=True)):
        if place not in judged:
            run.outcome.not_applicable[NO_CASE] += 1
        run.judge.close(run.outcome)
        run.outcome.job, run.outcome.seconds = job, spent[place] + drawing / len(jobs)
        conclude(run.outcome, run.drift)
    return [run.outcome for run in runs]


def _run_of(job: Job, budget: Budget, progress: Progress, memory: _OneCase) -> CaseRun:
    subject = replace(job.subject, component=memory.component, fingerprint=memory.fingerprint)
    remembering = replace(job, subject=subject)
    return CaseRun(Outcome(remembering), budget, progress, LocalJudge(remembering))


def _holds(run: CaseRun, case: AnyCase) -> bool:
    """Judge a case, unless the time is up, and return whether that was done and it holds."""
    before = run.outcome.cases
    with contextlib.suppress(Fails, Stop):
        run.case(case)
    return run.outcome.failure is None and run.outcome.cases > before
