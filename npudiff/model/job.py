"""A job: one property of one implementation on one target, how long it may look, and where its cases run."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from npudiff.model.component import Property, Subject
from npudiff.model.constraints import Constraints


@dataclass(frozen=True)
class Job:
    """One property of one implementation on one target."""

    subject: Subject
    """Component, implementation and target, and cases that are not run."""
    prop: Property
    """What must hold."""
    constraints: Constraints
    """Where cases are drawn."""

    @property
    def drawn_within(self) -> Constraints:
        """Where cases are drawn: what the implementation supports, narrowed by the property."""
        return self.constraints.within(Constraints((self.prop.within,)))

    @property
    def applies(self) -> bool:
        """Whether there is any case to draw, and any for the other run of a relation."""
        return bool(self.drawn_within) and bool(self.constraints.within(Constraints((self.prop.needs,))))

    @property
    def name(self) -> str:
        """``component.implementation.property``."""
        return ".".join((*self.subject.names, self.prop.name))


@dataclass(frozen=True)
class Isolation:
    """How cases are run in processes that may die of them."""

    journal: Path | None = None
    """Folder of the journals, in which a case is written down before it is run; None for no journal."""
    warm_up: float = 300.0
    """Seconds that a process may take until it gets a known answer from its device, before any case."""
    run: float = 60.0
    """Seconds that a case may take."""


@dataclass(frozen=True)
class Budget:
    """How long one job may look."""

    examples: int | None = 100
    """Cases to run; None for as many as the time allows, 0 for none but those of ``explicit_cases``."""
    seconds: float | None = None
    """Time after which no new case is started; None for no limit."""
    until: float | None = None
    """The same as a time of ``time.monotonic()``, for jobs that share one end; None for no limit."""
    seed: int | None = None
    """Seed of the draws."""
    fallback_seed: int | None = None
    """Seed where nobody gave one, of a job that may have to be run again: with the same one it draws the same cases."""
    deterministic: bool = True
    """Draw the same cases every time even without a seed."""
    shrink: bool = True
    """Whether a failing case is shrunk."""
    example_database: Path | None = None
    """Folder in which failing cases are remembered."""
    steps: int | None = None
    """Steps of each run of a component with history; None for as many as the component says."""
    isolation: Isolation | None = None
    """Run cases in a process of their own; None for this one."""
    explicit_cases: tuple[str, ...] = ()
    """Cases as JSON that are run before any is drawn: those of findings that somebody else had."""
    shared_database: Path | None = None
    """Folder of failing cases that others remember; it is read, and never written."""

    def seed_of(self, job: Job) -> int | None:
        """Return the seed of the draws of a job, whoever chose it; None for other cases every time.

        A deterministic run has one that the job's name makes: Hypothesis would take a digest of the text of what it
        runs, so that a comment in there would change all cases.
        """
        if self.seed is None and self.deterministic:
            return zlib.crc32(job.name.encode())
        return self.fallback_seed if self.seed is None else self.seed

    def example_database_of(self, job: Job) -> Path | None:
        """Folder in which Hypothesis remembers what failed of a job; None where somebody chose the draws."""
        return (
            None
            if self.example_database is None or self.deterministic or self.seed is not None
            else self.example_database / job.name
        )

    def shared_database_of(self, job: Job) -> Path | None:
        """Folder in which others' Hypothesis does; None as above."""
        return (
            None
            if self.shared_database is None or self.deterministic or self.seed is not None
            else self.shared_database / job.name
        )
