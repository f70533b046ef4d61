"""How close correct implementations come to their bounds, and that none is accused: 10,000 cases and more."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Row
from npudiff.run.engine import run_job
from npudiff.run.plan import Request, make_plan
from npudiff.show.report import bound_text, grouped

EXAMPLES = 500
PROFILES = ("8.5", "9.0")


def rows() -> Iterator[Row]:
    """Run every property of every implementation, on the CANN profiles of released versions."""
    for cann in PROFILES:
        plan = make_plan(Request(target="sim", cann=cann, examples=EXAMPLES, seed=20))
        outcomes = [run_job(job, plan.budget(job)) for job in plan.jobs]
        cases = sum(outcome.cases for outcome in outcomes)
        alarms = [outcome.job.name for outcome in outcomes if outcome.found]
        margins = ", ".join(f"{group.name} {bound_text(group)}" for group in grouped(outcomes))
        measured = (
            f"{len(alarms)} false alarms{''.join(f' {name}' for name in alarms)}; worst error over bound: {margins}"
        )
        yield Row(f"{cases:,} cases on `sim`, CANN {cann}", measured, "0 in 10,000", not alarms and cases >= 10_000)
