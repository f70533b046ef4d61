"""What the engine costs: cases per second of a job over a bare loop on the same cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from benchmarks.measure import Row, medians
from npudiff.judge.compare import compare
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.implementation import outputs_of
from npudiff.model.job import Budget, Job
from npudiff.run.discovery import load_component, load_target, select_implementations
from npudiff.run.engine import run_job

EXAMPLES = 300
ROUNDS = 5


def rows() -> Iterator[Row]:
    """Compare both ways of running the same cases, per implementation."""
    component, target = load_component("sliding_attention"), load_target("sim", None)
    for name in ("torch_native", "fia_extend_tnd", "fia_decode_tnd"):
        (item,) = select_implementations([component], [name])
        job = Job(Subject(component, item, target), EQUIVALENCE, item.constraints)
        yield _row(name, job)


def _row(name: str, job: Job) -> Row:
    budget = Budget(examples=EXAMPLES, seed=1)
    cases = _cases_of(job, budget)
    times = medians({"engine": lambda: run_job(job, budget), "bare": _bare_loop(job, cases)}, ROUNDS)
    ratio = times["bare"] / times["engine"]
    what = f"cases per second of `{name}`, engine over a bare loop ({len(cases)} cases)"
    return Row(what, f"{ratio:.2f} ({len(cases) / times['engine']:.0f} per second)", "≥ 0.8", ratio >= 0.8)


def _cases_of(job: Job, budget: Budget) -> list[object]:
    """The cases that a job runs, in their order."""
    component, cases = job.subject.component, []

    def remember(case: object) -> Collection[str]:
        cases.append(case)
        return component.features(case)

    subject = replace(job.subject, component=replace(component, features=remember))
    run_job(replace(job, subject=subject), budget)
    return cases


def _bare_loop(job: Job, cases: list[object]) -> Callable[[], None]:
    subject = job.subject

    def loop() -> None:
        with subject.target.activate():
            for case in cases:
                inputs = subject.component.inputs(case)
                outputs = outputs_of(subject.implementation(inputs, subject.target), subject.component.outputs)
                comparison = compare(subject.component.reference(inputs), outputs)
                if not comparison.holds:
                    raise ValueError(f"{job.name} is wrong: {case}")

    return loop
