"""Trials: every method on every mutant from several seeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from npudiff.judge.others import properties_with_others
from npudiff.model.anything import AnyInputs
from npudiff.model.component import Component
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.events import Event, JobEnded
from npudiff.run.messages import Task as RunTask
from npudiff.run.run import Run
from npudiff.score.methods import METHODS, Method


@dataclass(frozen=True)
class Trial:
    """One method, one mutant, one seed."""

    mutant: str
    """``component.name`` of what was tested."""
    method: str
    """Name of the method."""
    seed: int
    """Seed of its cases."""
    found: bool
    """Whether a case fails."""
    right: bool = False
    """Whether it is a correct implementation, and what is found a false alarm."""
    prop: str = ""
    """The property that fails, or how somebody's own suite does; empty if none does."""
    cases: int = 0
    """Cases up to and including the first that fails, or all."""
    seconds: float = 0.0
    """Time until the first that fails, or of all."""
    size: int | None = None
    """Elements of all inputs of the smallest failing case; None where nothing was found or shrunk."""
    case: str = ""
    """The smallest failing case, in a line."""


@dataclass(frozen=True)
class _Task:
    place: int  # of what is tested, among all
    method: Method
    seed: int
    job: Job
    examples: int
    shrinks: bool
    component: Component  # as it is: the job's may have other cases


def run_trials(
    jobs: Sequence[Job],
    *,
    seeds: Sequence[int],
    baseline_seeds: Sequence[int],
    examples: int,
    workers: int,
    methods: Sequence[Method] = METHODS,
    seconds: float | None = None,
    shrinks: bool = True,
    follow: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Run all methods, seed by seed.

    Parameters
    ----------
    jobs : sequence of Job
        Equivalence of each mutant, and of correct implementations, which must not be found.
    seeds, baseline_seeds : sequence of int
        Seeds of our own method, and of the others, which correct implementations get of all methods.
    examples : int
        Cases of equivalence, and of each other method; relations get their share.
    workers : int
        Processes.
    methods : sequence of Method
        Which to run.
    seconds : float or None
        Time after which no other seed is begun; the first is run in any case.
    shrinks : bool
        Whether what our own method finds is made smaller.
    follow : callable
        Called with each trial when it is over; what ends a run early takes none of those away.

    Returns
    -------
    list of Trial
        In the order of mutants, methods and seeds; a method that has no case for a mutant has no trial.
    """
    started = time.perf_counter()
    done: list[tuple[_Task, Trial]] = []
    for seed in sorted({*seeds, *baseline_seeds}):
        if done and seconds is not None and time.perf_counter() - started > seconds:
            break
        tasks = [
            task
            for place, job in enumerate(jobs)
            for task in _tasks(place, job, methods, seed, (seeds, baseline_seeds), examples, shrinks=shrinks)
        ]
        done += zip(tasks, _with_all_properties(tasks, examples, workers, follow), strict=True)
    return [trial for _, trial in sorted(done, key=lambda pair: (pair[0].place, methods.index(pair[0].method)))]


def _tasks(
    place: int,
    given: Job,
    methods: Sequence[Method],
    seed: int,
    seeds: tuple[Sequence[int], Sequence[int]],
    examples: int,
    *,
    shrinks: bool,
) -> Iterator[_Task]:
    """Yield the trials of one seed on one implementation."""
    right = given.subject.implementation.wrong is None
    for method in methods:
        if seed in seeds[0 if method.ours and not right else 1]:
            job = method.job(given.subject, given.constraints, seed, examples)
            if job is not None:
                share, component = _share(job, examples), given.subject.component
                yield _Task(place, method, seed, job, share, shrinks and method.ours, component)


def _with_all_properties(
    tasks: Sequence[_Task], examples: int, workers: int, follow: Callable[[Trial], None]
) -> list[Trial]:
    """Run tasks; where npudiff's own equivalence finds nothing, also its other properties.

    A trial is followed when nothing of it is left to be run.
    """
    groups: dict[int, list[_Task]] = {}

    def followed(place: int, trial: Trial) -> None:
        task = tasks[place]
        if task.method.ours and not trial.found and not trial.right:
            groups[place] = [
                dataclasses.replace(task, job=job, examples=_share(job, examples)) for job in _relations(task.job)
            ]
        if not groups.get(place):
            follow(trial)

    trials = _run(tasks, workers, followed)
    owners = [(place, number) for place, group in sorted(groups.items()) for number in range(len(group))]
    relations: dict[int, dict[int, Trial]] = {place: {} for place, _ in owners}

    def completed(index: int, trial: Trial) -> None:
        place, number = owners[index]
        relations[place][number] = trial
        if len(relations[place]) == len(groups[place]):
            whole = [one for _, one in sorted(relations[place].items())]
            trials[place] = _with_relations(trials[place], whole)
            follow(trials[place])

    _run([groups[place][number] for place, number in owners], workers, completed)
    return trials


def _share(job: Job, examples: int) -> int:
    """Cases that a property gets where equivalence gets ``examples``; a run of a machine counts as many."""
    history = job.subject.component.history
    return max(1, round(examples * job.prop.example_ratio * (1.0 if history is None else history.runs)))


def _relations(job: Job) -> list[Job]:
    """The other properties of the mutant."""
    relations = (
        dataclasses.replace(job, prop=prop)
        for prop in properties_with_others(job.subject.component, job.subject.implementation)[1:]
    )
    return [relation for relation in relations if relation.applies]


def _run(tasks: Sequence[_Task], workers: int, follow: Callable[[int, Trial], None]) -> list[Trial]:
    """Run tasks in processes, and return their trials in order; ``follow`` is told the number of each that is over."""
    given = [RunTask(task.job, _budget(task), None) for task in tasks]
    trials: dict[int, Trial] = {}

    def listen(event: Event) -> None:
        if isinstance(event, JobEnded):
            trials[event.index] = _trial(tasks[event.index], event.outcome)
            follow(event.index, trials[event.index])

    with Run(max(1, min(workers, len(tasks))), [listen]) as run:
        run.run(given)
    return [trials[index] for index in range(len(tasks))]


def _budget(task: _Task) -> Budget:
    """Return the budget of a trial: correct implementations have their cases in common, and mutants fail soon."""
    right = task.job.subject.implementation.wrong is None
    return Budget(examples=task.examples, seed=task.seed, shrink=task.shrinks, together=right and task.method.ours)


def _trial(task: _Task, outcome: Outcome) -> Trial:
    subject, component, failure = task.job.subject, task.component, outcome.failure
    name = f"{subject.component.name}.{subject.implementation.name}"
    right = subject.implementation.wrong is None
    if failure is None:
        return Trial(name, task.method.name, task.seed, False, right, cases=outcome.cases, seconds=outcome.seconds)
    return Trial(
        name,
        task.method.name,
        task.seed,
        found=True,
        right=right,
        prop=task.job.prop.name,
        cases=outcome.cases,
        seconds=outcome.seconds_to_failure,
        size=elements(component.inputs(failure.case)) if task.shrinks else None,
        case=component.describe(failure.case),
    )


def _with_relations(trial: Trial, relations: Sequence[Trial]) -> Trial:
    """Add the findings of relations; their cases and seconds come after those of equivalence."""
    cases, seconds = trial.cases, trial.seconds
    for relation in relations:
        cases, seconds = cases + relation.cases, seconds + relation.seconds
        if relation.found:
            return dataclasses.replace(relation, cases=cases, seconds=seconds)
    return dataclasses.replace(trial, cases=cases, seconds=seconds)


def elements(inputs: AnyInputs) -> int:
    """Return how many elements the tensors of (nested) dataclass inputs have: the size of a case."""
    if hasattr(inputs, "numel"):
        return int(inputs.numel())
    if isinstance(inputs, (list, tuple)):
        return sum(map(elements, inputs))
    if not dataclasses.is_dataclass(inputs):
        return 0
    return sum(elements(getattr(inputs, field.name)) for field in dataclasses.fields(inputs))
