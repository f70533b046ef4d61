"""How long the state machine of hybrid pools takes: 50 runs of 200 steps, each compared with the remembered history."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Row
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.job import Budget, Job
from npudiff.run.discovery import load_component, load_target, select_implementations
from npudiff.run.engine import run_job

RUNS, STEPS = 50, 200


def rows() -> Iterator[Row]:
    """Run the machine over the pools of each right implementation."""
    component, target = load_component("hybrid_pools"), load_target("sim", None)
    for item in select_implementations([component], []):
        if item.wrong is None:
            job = Job(Subject(component, item, target), EQUIVALENCE, item.constraints)
            outcome = run_job(job, Budget(examples=RUNS, steps=STEPS, seed=0))
            holds = outcome.failure is None and outcome.steps >= RUNS * STEPS and outcome.seconds <= 60
            measured = f"{outcome.seconds:.0f} s ({outcome.seconds / outcome.steps * 1000:.1f} ms per step)"
            yield Row(f"state machine over `{item.name}`, {RUNS} runs of {STEPS} steps", measured, "≤ 60 s", holds)
