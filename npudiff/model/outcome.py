"""What came out of a job: verdict, failure, regions, margins."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from npudiff.model.comparison import Comparison
from npudiff.model.job import Job


class Verdict(Enum):
    """How one property ended."""

    HOLDS = "holds"
    WRONG = "wrong value"
    RAISED = "exception"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Poisoning:
    """A case that held by itself, and after which another one fails that is right by itself."""

    case: str
    """What poisons, as JSON; empty if it was not found which of the cases before it was."""
    victim: str
    """In what it was seen, as JSON."""
    error: str
    """What was seen in it."""


@dataclass(frozen=True)
class Failure:
    """A case on which the property fails."""

    case: Any
    comparison: Comparison | None
    error: BaseException | None


@dataclass
class Outcome:
    """What happened to one job."""

    job: Job
    """What was run."""
    cases: int = 0
    """Cases that were run to a verdict, up to and including the first failure. Of a component with history, runs."""
    steps: int = 0
    """Steps of these runs, each of which was judged; 0 for components without history."""
    not_applicable: Counter[str] = field(default_factory=Counter)
    """Reasons why drawn cases were not run, with their numbers."""
    features: Counter[str] = field(default_factory=Counter)
    """Regions that the cases were in."""
    worst_ratio: float = 0.0
    """Largest error over bound of the cases that hold."""
    worst_case: Any = None
    """The case of the largest ratio."""
    exact: bool = True
    """Whether every comparison asked for equality."""
    seconds: float = 0.0
    seconds_to_failure: float = 0.0
    shrink_seconds: float = 0.0
    """Time of the whole job, until the first failure, and of shrinking."""
    first_failure: Failure | None = None
    failure: Failure | None = None
    """The failing case as drawn, and as small as it became."""
    remembered: bool = False
    """Whether cases that failed in an earlier run were tried first."""
    repeated: tuple[int, int] = (0, 0)
    """How often the failing case failed when it was run again, and of how many times."""
    alone: tuple[int, int] = (0, 0)
    """Where cases run in processes of their own, how often the failing case failed when it was run alone, and of how
    many times; both 0 if nobody looked."""
    isolated: bool = False
    """Whether each case was run in a process of its own, and this one runs nothing of the implementation."""
    poisonings: list[Poisoning] = field(default_factory=list)
    """Cases that spoiled the device for others, which were judged again."""
    journal: Path | None = None
    """Journal of a job that has something to report; to be removed when that is written down."""
    verdict: Verdict = Verdict.HOLDS
    """How it ended."""

    @property
    def flaky(self) -> bool:
        """Whether the failing case did not always fail when it was run again. It is a finding all the same."""
        failed, runs = self.repeated
        return failed < runs

    @property
    def findings(self) -> int:
        """Things to report: a failure, and cases that spoiled the device for others, of which one is written down."""
        return (self.failure is not None) + bool(self.poisonings)

    def settle(self) -> None:
        """Remove the journal: all that it says is written elsewhere, or need not be."""
        if self.journal is not None:
            with contextlib.suppress(OSError):  # it is told once more for nothing
                self.journal.unlink(missing_ok=True)
            self.journal = None
