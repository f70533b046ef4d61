"""A program that has functions of a backend judged in a process of its own, and says what came out as JSON.

It is told as JSON on its standard input: ``backend``, as ``--backend`` is told it; ``target``; ``runs``, a list of what
``Run`` has. Its last line has ``names`` of all implementations that are here, ``left_out``, modules and why,
and ``judged``, for each run the results by name.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

BUGS = "FAKE_BACKEND_BUGS"


@dataclass(frozen=True)
class Run:
    """Which implementations of a component are judged, and on what."""

    component: str
    where: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    """Names; empty for all."""
    but: tuple[str, ...] = ()
    examples: int = 3
    bug: str = ""
    """That the fake is told to have."""


def judged(backend: str, target: str, run: Run) -> dict[str, Any]:
    """Return what came out of equivalence with the reference, by implementation."""
    from npudiff.judge.judge import EQUIVALENCE
    from npudiff.model.job import Budget
    from npudiff.run.engine import run_job
    from npudiff.run.plan import Request, make_plan

    plan = make_plan(Request((run.component,), (f"backend:{backend}",), target, where=tuple(run.where)))
    found = {}
    os.environ[BUGS] = run.bug
    for job in plan.jobs:
        name = job.subject.implementation.name
        if job.prop is EQUIVALENCE and (not run.only or name in run.only) and name not in run.but:
            outcome = run_job(job, Budget(run.examples, shrink=False))
            failure = outcome.failure
            found[f"{run.component}.{name}"] = {
                "verdict": outcome.verdict.value,
                "cases": outcome.cases,
                "not_applicable": dict(outcome.not_applicable),
                "why": "" if failure is None else f"{failure.case}: {failure.error or failure.comparison}"[:2000],
            }
    return found


def main() -> None:
    """Do what standard input says."""
    from npudiff.model.backend import wish_of
    from npudiff.run.backends import room_of
    from npudiff.run.discovery import load_target

    told = json.load(sys.stdin)
    load_target(told["target"], None)  # a backend is imported beside its device
    room = room_of(wish_of(told["backend"]))
    results = [judged(told["backend"], told["target"], Run(**run)) for run in told["runs"]]
    here = [f"{one.component}.{one.name}" for one in room.implementations if one.requires is None or not one.requires()]
    sys.stdout.write("\n" + json.dumps({"names": here, "left_out": dict(room.left_out), "judged": results}))


def said(runs: list[Run], **more: str) -> str:
    """Return what the program is told."""
    return json.dumps({**more, "runs": [asdict(run) for run in runs]})


if __name__ == "__main__":
    main()
