"""Adapters on drawn cases, for the sake of the calls that they make."""

from __future__ import annotations

from typing import Any

from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation, Target
from npudiff.model.job import Budget, Job, Outcome
from npudiff.run.discovery import select_implementations
from npudiff.run.engine import run_job


def _runs(subject: Subject, case: Any) -> Comparison:  # noqa: ANN401 - a case of any component
    """Run the implementation, and ask nothing of what it returns."""
    subject.run(subject.component.inputs(case))
    return Comparison(())


RUNS = Property("makes_its_calls", "it runs; what it returns is not looked at", _runs)


def implementations(component: Component) -> list[Implementation]:
    """Return the built-in implementations that are not wrong on purpose."""
    return [item for item in select_implementations([component], []) if item.wrong is None]


def run_drawn(component: Component, item: Implementation, target: Target, examples: int) -> Outcome:
    """Run an implementation on cases that are drawn as ``npudiff check`` draws them, the same ones every time."""
    job = Job(Subject(component, item, target), RUNS, item.constraints.within(Constraints()))
    return run_job(job, Budget(examples=examples, deterministic=True, shrink=False))
