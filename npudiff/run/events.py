"""Events of a run: one stream that every listener gets.

The progress bar, the log of the run, a gate and a score are listeners. All that they know of a run is in its events,
wherever its jobs run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from npudiff.model.job import Job, Outcome
from npudiff.run.messages import Kept


@dataclass(frozen=True)
class JobStarted:
    """A job begins."""

    job: Job
    stage: str
    """Part of the run that the job belongs to; empty where a run has one part."""


@dataclass(frozen=True)
class CasesJudged:
    """A job that is running has judged cases."""

    job: Job
    cases: int
    """Cases so far."""
    stage: str


@dataclass(frozen=True)
class JobEnded:
    """A job has ended; its findings are written already, if that could be done."""

    index: int
    """Number of its task among those that were given to the run at once."""
    outcome: Outcome
    """What came out. Where the job ran in another process, a failure has its case and no tensors."""
    kept: tuple[Kept, ...]
    """Its findings."""
    stage: str


@dataclass(frozen=True)
class RunEnded:
    """The run is over, and nothing follows."""

    error: BaseException | None
    """What ended it before its time; None if nothing did."""


Event = JobStarted | CasesJudged | JobEnded | RunEnded
Listener = Callable[[Event], None]
