"""What isolation costs: cases per second in a batch worker over those in this process, for cheap cases too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Row, medians
from npudiff.model.job import Budget, Job
from npudiff.run.engine import run_job
from npudiff.run.messages import Task
from npudiff.run.plan import Plan, Request, make_plan
from npudiff.run.workers import run_in_workers
from npudiff.show.finding import keeper

IMPLEMENTATIONS = {
    "swa_mask": ("eager", 15),
    "moe_gating": ("npu_moe_gating_top_k", 8),
    "rms_norm": ("native_rms_norm", 6),
    "sliding_attention": ("fia_decode_tnd", 1),
}
"""By component, and how often its jobs are run: for some seconds, of which the start of the processes is little."""

ROUNDS = 5


def rows() -> Iterator[Row]:
    """Run the same jobs both ways, as ``npudiff check --workers 1`` does with ``--no-isolate`` and ``--isolate``."""
    for component, (implementation, often) in IMPLEMENTATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            plan = _plan(component, implementation, Path(folder))
            tasks = plan.tasks(keeper(Path(folder))) * often
            bare = [(job, replace(budget, isolation=None)) for job, budget, _ in tasks]
            cases = _here(bare)
            times = medians({"here": lambda: _here(bare), "isolated": lambda: _isolated(tasks)}, ROUNDS)  # noqa: B023
        ratio = times["here"] / times["isolated"]
        what = f"cases per second of `{component}.{implementation}`, isolated over in this process ({cases:,} cases)"
        yield Row(what, f"{ratio:.2f} ({cases / times['isolated']:.0f} per second)", "≥ 0.9", ratio >= 0.9)


def _plan(component: str, implementation: str, folder: Path) -> Plan:
    return make_plan(
        Request(
            components=(component,),
            implementations=(implementation,),
            target="sim",
            seed=3,
            workers=1,
            isolate=True,
            journal=folder,
        )
    )


def _here(tasks: Sequence[tuple[Job, Budget]]) -> int:
    return sum(run_job(job, budget).cases for job, budget in tasks)


def _isolated(tasks: Sequence[Task]) -> int:
    return sum(outcome.cases for _, outcome, _ in run_in_workers(tasks, 1))
