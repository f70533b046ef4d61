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

    def seed_of(self, job: Job) -> int | None:
        """Seed of the draws of a job, whoever chose it; None for other cases every time.

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
