"""A round: a batch of cases of one job, from a seed of its own.

The seed follows from the name of the campaign, the job and the number of the round. So a round that was lost, with a
process, a card or the whole machine, is the same round when it is run again; a guided one begins with what is known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from npudiff.gate.rotation import seed_of
from npudiff.model.job import Job, Outcome
from npudiff.run.explain import outside
from npudiff.run.guidance import can_be_guided
from npudiff.run.messages import Keep, Kept, Task
from npudiff.run.plan import Plan

BATCH = 200
"""Cases of equivalence of a round; relations and costly components have their usual part of it."""

LOOKS_INSIDE = 8
"""Where a region is known to fail, one round of so many draws in it as well: a region that is told may be too large."""

MOST_GUIDES = 32
"""Cases that a guided round begins with."""

Region = Mapping[str, Sequence[Any]]
"""Axis to the values with which a case fails, as ``Outcome.region``."""


@dataclass(frozen=True)
class Round:
    """A batch of cases of one job."""

    job: Job
    number: int
    """Number of the round among those of its job, from 0 on."""
    seed: int
    regions: tuple[Region, ...] = ()
    """Where no case is drawn, since it is known to fail there."""
    given: tuple[str, ...] | None = None
    """Cases as JSON that are run in place of drawn ones; None to draw."""
    corpus: tuple[str, ...] | None = None
    """Cases as JSON that took new branches, from which a guided round goes on; None for plain draws."""
    first: tuple[str, ...] = ()
    """Cases as JSON of other campaigns, which are run before any is drawn."""


def round_of(
    name: str,
    job: Job,
    number: int,
    regions: Sequence[Region] = (),
    corpus: Sequence[str] = (),
    first: Sequence[str] = (),
) -> Round:
    """Return a round of a campaign of this name.

    Parameters
    ----------
    name : str
        Name of the campaign, from which all seeds follow.
    job : Job
        What is run.
    number : int
        Number of the round.
    regions : sequence of mapping
        Where the job is known to fail.
    corpus : sequence of str
        Cases that took new branches, the newest last: every second round of a job whose branches can be seen goes on
        from the last ones.
    first : sequence of str
        Cases of other campaigns that come before those that are drawn.
    """
    inside = number % LOOKS_INSIDE == LOOKS_INSIDE - 1
    regions = () if inside or narrowed(job, regions) is None else tuple(regions)
    follows = tuple(corpus[-MOST_GUIDES:]) if number % 2 and can_be_guided(job) else None
    return Round(job, number, seed_of(name, number, job.name), regions, corpus=follows, first=tuple(first))


def narrowed(job: Job, regions: Sequence[Region]) -> Job | None:
    """Return a job without the regions in which it is known to fail; None if nothing is left, or nothing is known."""
    constraints = job.constraints
    for region in regions:
        if not region or not region.keys() <= job.subject.component.axes.keys():  # of another version
            return None
        constraints = constraints.within(outside(region, job.subject.component.axes))
    rest = replace(job, constraints=constraints)
    return rest if constraints and rest.applies else None


def task_of(plan: Plan, one: Round, keep: Keep | None, until: float | None) -> Task:
    """Return a round as a task.

    Parameters
    ----------
    plan : Plan
        What says how cases are run.
    one : Round
        What is run.
    keep : callable or None
        Writes findings; None for none.
    until : float or None
        Time of ``time.monotonic()`` after which no other case is begun.
    """
    job = narrowed(one.job, one.regions) if one.regions else one.job
    budget = replace(
        plan.budget(one.job),
        until=until,
        deterministic=False,
        seed=None,
        fallback_seed=one.seed,
        example_database=None,
        shared_database=None,
        together=False,
        collects=True,
    )
    if one.corpus is not None:
        budget = replace(budget, guided=True, corpus=one.corpus)
    if one.given is not None:
        budget = replace(budget, examples=0, explicit_cases=one.given, shrink=False, explains=False)
    else:
        shared = () if one.number else budget.explicit_cases
        budget = replace(budget, explicit_cases=(*shared, *one.first))
    return Task(job or one.job, budget, keep)


@dataclass(frozen=True)
class Ended:
    """A round that has ended."""

    round: Round
    outcome: Outcome
    kept: tuple[Kept, ...]
    """Its findings."""
    cut: bool
    """Whether the time was up before it was over: it is run once more."""


@dataclass(frozen=True)
class Failed:
    """A round whose process was lost, or in which something other than an implementation raised."""

    round: Round
    why: str


@dataclass(frozen=True)
class CardLost:
    """A card that gives no known answer any more, and is not used again."""

    card: str
    why: str
    round: Round
    """What it ran, which is run elsewhere."""


@dataclass(frozen=True)
class Restarted:
    """A worker whose process, or whose machine, was gone; what it ran is run again."""

    worker: str
    why: str
    round: Round | None = None
    """What it ran, if nobody has run it again by now."""


def is_cut(outcome: Outcome, until: float | None) -> bool:
    """Whether an outcome is that of a round whose time was up."""
    return not outcome.found and until is not None and time.monotonic() > until
