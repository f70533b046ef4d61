"""Looking further after a finding: the same jobs once more, outside of the region in which they fail.

Of one function several things may be wrong, and the first that is found would hide the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.constraints import Constraints
from npudiff.model.job import Job
from npudiff.run.events import JobEnded
from npudiff.run.explain import outside
from npudiff.run.messages import Task


def further(ended: Sequence[JobEnded], tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that run once more: those that failed the last time, outside of what is known to fail.

    What equivalence fails on is left out of relations, too. A task for which nothing new is known is not among them.

    Parameters
    ----------
    ended : sequence of JobEnded
        All jobs that have ended, those that ran once more included.
    tasks : sequence of Task
        Those of the plan.
    """
    last = {one.outcome.job.name: one.outcome for one in ended}
    failed = [one.outcome for one in ended if one.outcome.failure is not None and one.outcome.region]
    more = []
    for task in tasks:
        outcome = last.get(task.job.name)
        if task.keep is None or outcome is None or outcome.failure is None:
            continue
        regions = [one.region for one in failed if one.job.name in (task.job.name, _equivalence(task.job))]
        narrowed = replace(task.job, constraints=_outside(task.job, regions))
        if narrowed.constraints != outcome.job.constraints and narrowed.constraints and narrowed.applies:
            more.append(task._replace(job=narrowed))
    return more


def _equivalence(job: Job) -> str:
    return ".".join((*job.subject.names, EQUIVALENCE.name))


def _outside(job: Job, regions: Sequence[dict[str, list[object]]]) -> Constraints:
    constraints = job.constraints
    for region in regions:
        constraints = constraints.within(outside(region, job.subject.component.axes))
    return constraints
