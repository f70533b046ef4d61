"""A job, one property of one implementation on one target: where its cases run, how long it may look, what came out."""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from npudiff.files.writing import file_name
from npudiff.model.component import Comparison, Property, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.drift import Drift


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


TIMEOUT, LEAST_TIMEOUT = 60.0, 5.0
"""Seconds that a case may take where nobody says, and the fewest that follow from the time of a run."""


@dataclass(frozen=True)
class Isolation:
    """How cases are run in processes that may die of them."""

    journal: Path | None = None
    """Folder of the journals, in which a case is written down before it is run; None for no journal."""
    warm_up: float = 300.0
    """Seconds that a process may take until it gets a known answer from its device, before any case."""
    run: float = TIMEOUT
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
    smaller: int | None = None
    """Cases that are tried in place of one that fails; None for all that make it smaller."""
    example_database: Path | None = None
    """Folder in which failing cases are remembered."""
    steps: int | None = None
    """Steps of each run of a component with history; None for as many as the component says."""
    isolation: Isolation | None = None
    """Run cases in a process of their own; None for this one."""
    explains: bool = False
    """Whether what a failure depends on is found out, and what other ways of a backend make of its case."""
    second_look: Isolation | None = None
    """How a job that fails in this process is run again in one that has run nothing; None where that is not wanted."""
    explicit_cases: tuple[str, ...] = ()
    """Cases as JSON that are run before any is drawn: those of findings that somebody else had."""
    shared_database: Path | None = None
    """Folder of failing cases that others remember; it is read, and never written."""
    together: bool = False
    """Whether the job may have cases in common with others of its component and property."""
    collects: bool = False
    """Whether the outcome keeps a case of each kind: of each set of regions that a case is in."""
    guided: bool = False
    """Whether every second case is a mutation of one that took a new branch, where branches can be seen."""
    corpus: tuple[str, ...] = ()
    """Cases as JSON that did before."""

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
            else self.example_database / file_name(job.name)
        )

    def shared_database_of(self, job: Job) -> Path | None:
        """Folder in which others' Hypothesis does; None as above."""
        return (
            None
            if self.shared_database is None or self.deterministic or self.seed is not None
            else self.shared_database / file_name(job.name)
        )


class Verdict(Enum):
    """How one property ended."""

    HOLDS = "holds"
    WRONG = "wrong value"
    DRIFT = "drift"
    RAISED = "exception"
    NOT_APPLICABLE = "not applicable"


class Beside(Enum):
    """What another way of a backend makes of a case that fails."""

    HOLDS = "holds"
    SAME = "fails in the same way"
    FAILS = "fails otherwise"
    RAISES = "raises"


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
    kinds: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Regions that a case is in, to the first such case as JSON, where the budget collects them: most say nothing new
    to who collects, and are never read."""
    guides: list[Any] = field(default_factory=list)
    """Cases that took a branch of the implementation that no case of the corpus took, where the search is guided."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Outputs of the reference that the implementation did not return, with the numbers of cases that hold without."""
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
    worst_failure: Failure | None = None
    """The failing case with the largest error over bound of all that were seen, the smaller ones included."""
    failed_ratio: float = 0.0
    """That error over bound; infinite where equality was asked for, 0 where no values were compared."""
    remembered: bool = False
    """Whether cases that failed in an earlier run were tried first."""
    repeated: tuple[int, int] = (0, 0)
    """How often the failing case failed when it was run again, and of how many times."""
    alone: tuple[int, int] = (0, 0)
    """Where cases run in processes of their own, how often the failing case failed when it was run alone, and of how
    many times; both 0 if nobody looked."""
    isolated: bool = False
    """Whether each case was run in a process of its own, and this one runs nothing of the implementation."""
    others: dict[str, str] = field(default_factory=dict)
    """Name of another way of the backend to what it makes of the smallest failing case, as ``Beside`` says it."""
    region: dict[str, list[Any]] = field(default_factory=dict)
    """Axes without whose values the smallest failing case holds, and the values with which it fails."""
    poisonings: list[Poisoning] = field(default_factory=list)
    """Cases that spoiled the device for others, which were judged again."""
    operators: dict[str, int] | None = None
    """Operators that the first call of an implementation which is not built in dispatched, and how often; None where
    nobody has looked."""
    drifts: tuple[Drift, ...] = ()
    """What the errors of all cases have in common, of each output that has bounds; the largest score first."""
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
    def drift(self) -> Drift | None:
        """What is to be reported of ``drifts``: the largest, of a job that found one and nothing else."""
        return self.drifts[0] if self.verdict is Verdict.DRIFT else None

    @property
    def found(self) -> bool:
        """Whether the property does not hold: of a case, or of all cases together."""
        return self.failure is not None or self.drift is not None

    @property
    def spoiled(self) -> bool:
        """Whether the case that failed is right by itself: what spoiled the device for it is to be reported instead."""
        failed, runs = self.alone
        return self.failure is not None and failed == 0 < runs and bool(self.poisonings)

    @property
    def findings(self) -> int:
        """Things to report: what was found, and one of the cases that spoiled the device for others."""
        return (self.found and not self.spoiled) + bool(self.poisonings)

    def settle(self) -> None:
        """Remove the journal: all that it says is written elsewhere, or need not be."""
        if self.journal is not None:
            with contextlib.suppress(OSError):  # it is told once more for nothing
                self.journal.unlink(missing_ok=True)
            self.journal = None


def unjudged(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], str]:
    """Return the implementations of which no case came to a verdict, by component and name, and the usual reason.

    What was found by no case of its own, such as one that spoiled the device, is a verdict too.
    """
    ran: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        ran.setdefault(outcome.job.subject.names, []).append(outcome)
    return {
        names: _usual_reason(runs)
        for names, runs in ran.items()
        if not any(outcome.cases or outcome.findings for outcome in runs)
    }


def _usual_reason(outcomes: Sequence[Outcome]) -> str:
    """Why cases of an implementation were not run, most of them."""
    reasons = sum((one.not_applicable for one in outcomes), Counter[str]())
    return reasons.most_common(1)[0][0] if reasons else "no case could be drawn"
