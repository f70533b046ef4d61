"""The record of a run: plain values, in the order of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1

MAX_RECORD_BYTES = 2**24
MOST_VALUES = 2**20
"""Values in a record: a list of nothing takes thirty times the memory of its two characters."""

MOST_KEPT = 50
"""Records that a folder keeps; the oldest are removed."""

MOST_TEXT = 2_000
"""Characters of a text in a record; the writer clips, and the reader refuses what is longer."""

MOST_LINE = 400
"""Characters of the case of a finding in the list of findings; its folder has all of it."""

MOST_ENTRIES = 50_000
MOST_REASONS, MOST_FEATURES = 5, 60

Ended = Literal["complete", "interrupted", "defect", "device lost"]
JobVerdict = Literal["holds", "wrong value", "drift", "exception", "not applicable", "not run"]


@dataclass(frozen=True)
class Count:
    """How often a region or a reason occurred."""

    name: str
    number: int


@dataclass(frozen=True)
class EnvironmentEntry:
    """A version that a result depends on, or the machine."""

    name: str
    text: str


@dataclass(frozen=True)
class JobRecord:
    """The result of one property of one implementation."""

    component: str
    implementation: str
    property_name: str
    """What was run."""
    verdict: JobVerdict
    """How it ended; ``not run`` where the run ended before."""
    cases: int = 0
    steps: int = 0
    """As in an outcome."""
    not_applicable: int = 0
    """Draws that were not run."""
    reasons: tuple[Count, ...] = ()
    """The most frequent reasons for that."""
    features: tuple[Count, ...] = ()
    """Regions that the cases were in."""
    worst: float = 0.0
    """Largest error over bound of the cases that hold."""
    worst_case: str = ""
    """The case of ``worst``, in the component's words."""
    held: int = 0
    """Cases that hold."""
    exact: bool = True
    """Whether every comparison asked for equality."""
    seconds: float = 0.0
    """Time of the job."""
    flaky: bool = False
    """Whether the failing case did not fail again."""
    alone: tuple[int, ...] = ()
    """How often the failing case failed in a process of its own, and of how many times."""
    findings: tuple[str, ...] = ()
    """Names of the folders of its findings."""
    without: tuple[str, ...] = ()
    """Known issues whose cases were left out."""


@dataclass(frozen=True)
class FindingRecord:
    """What a list of findings shows of a finding."""

    folder: str
    """Name of its folder, which is beside the folder of the record."""
    component: str
    implementation: str
    property_name: str
    verdict: str
    line: str
    symptom: str
    """What findings of one bug share: the exception, or the smallest case."""


@dataclass(frozen=True)
class MutantRecord:
    """Whether an implementation that is wrong on purpose was found."""

    component: str
    implementation: str
    property_name: str
    wrong: str
    """Which bug it re-creates."""
    found: bool
    """Whether a case failed."""
    cases: int
    """Cases up to and including that one."""
    seconds: float
    """Time until then, or of the whole job."""
    smallest: str
    """The smallest case that fails, in the component's words."""


@dataclass(frozen=True)
class KnownRecord:
    """A known issue, and what a gate saw of it."""

    name: str
    """What it is about: component, implementation, property, condition."""
    state: str
    """What became of it, in words."""
    closes: bool
    """Whether the gate is closed by it."""
    link: str
    expires: str
    """Where it is tracked, and until which day it is accepted."""


@dataclass(frozen=True)
class RunRecord:
    """A run."""

    npudiff: str
    """Version of npudiff."""
    command: str
    """``check`` or ``gate``."""
    started: str
    """UTC, as ``2026-01-31T08:05:00Z``."""
    seconds: float
    """How long it took, by the clock."""
    ended: Ended
    """Whether it came to its end."""
    problem: str
    """Why it did not."""
    environment: tuple[EnvironmentEntry, ...]
    """Versions."""
    target: str
    device: str
    cann: str
    """Where it ran."""
    profile: str
    seed: str
    examples: str
    budget: str
    """How cases were drawn; empty for what was not said."""
    scope: tuple[str, ...]
    """What the run was narrowed to: ``--where``, ``--model``, ``--case``. Empty for a whole run."""
    judged: bool
    """Whether a mutant that was not found is the run's fault."""
    jobs: tuple[JobRecord, ...]
    findings: tuple[FindingRecord, ...]
    mutants: tuple[MutantRecord, ...]
    """What came out."""
    known: tuple[KnownRecord, ...] = ()
    """Known issues of a gate."""
    gate: str = ""
    """Whether a gate was open, and if not, why; empty for any other run."""
