"""The record of a run: plain values only, in the order in which they stand in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1

RUNS = "runs"
"""Folder of the records, beside that of the findings."""

MAX_RECORD_BYTES = 2**24
MOST_KEPT = 50
"""Records that a folder keeps; the oldest are removed."""

MOST_TEXT = 2_000
"""Characters of a text in a record; the writer clips, and the reader refuses what is longer."""

MOST_LINE = 400
"""Characters of the case of a finding in the list of findings; its folder has all of it."""

MOST_ENTRIES = 50_000
MOST_REASONS, MOST_FEATURES = 5, 60

Ended = Literal["complete", "interrupted", "defect", "device lost"]
JobVerdict = Literal["holds", "wrong value", "exception", "not applicable", "not run"]


@dataclass(frozen=True)
class Count:
    """How often something was the case."""

    name: str
    number: int


@dataclass(frozen=True)
class Said:
    """Something that has a name, in words."""

    name: str
    text: str


@dataclass(frozen=True)
class JobRecord:
    """What became of one property of one implementation.

    Attributes
    ----------
    component, implementation, property_name : str
        What was run.
    verdict : str
        How it ended; ``not run`` where the run ended before.
    cases, steps : int
        As in an outcome.
    not_applicable : int
        Draws that were not run.
    reasons : tuple of Count
        The most frequent reasons for that.
    features : tuple of Count
        Regions that the cases were in.
    worst : float
        Largest error over bound of the cases that hold.
    worst_case : str
        The case of it, in the component's words.
    held : int
        Cases that hold, of which ``worst`` is told.
    exact : bool
        Whether every comparison asked for equality.
    seconds : float
        Time of the job.
    flaky : bool
        Whether the failing case did not fail again.
    alone : tuple of int
        How often the failing case failed in a process of its own, and of how many times.
    findings : tuple of str
        Names of the folders of its findings.
    without : tuple of str
        Known issues whose cases were left out.
    """

    component: str
    implementation: str
    property_name: str
    verdict: JobVerdict
    cases: int = 0
    steps: int = 0
    not_applicable: int = 0
    reasons: tuple[Count, ...] = ()
    features: tuple[Count, ...] = ()
    worst: float = 0.0
    worst_case: str = ""
    held: int = 0
    exact: bool = True
    seconds: float = 0.0
    flaky: bool = False
    alone: tuple[int, ...] = ()
    findings: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class FindingRecord:
    """A finding, as far as a line of a list needs it.

    Attributes
    ----------
    folder : str
        Name of its folder; where that is, the place of the record says, and nothing in it.
    symptom : str
        What findings of one bug share: the exception, or the smallest case.
    """

    folder: str
    component: str
    implementation: str
    property_name: str
    verdict: str
    line: str
    symptom: str


@dataclass(frozen=True)
class MutantRecord:
    """Whether an implementation that is wrong on purpose was found.

    Attributes
    ----------
    wrong : str
        Which bug it re-creates.
    found : bool
        Whether a case failed.
    cases : int
        Cases up to and including that one.
    seconds : float
        Time until then, or of the whole job.
    smallest : str
        The smallest case that fails, in the component's words.
    """

    component: str
    implementation: str
    property_name: str
    wrong: str
    found: bool
    cases: int
    seconds: float
    smallest: str


@dataclass(frozen=True)
class KnownRecord:
    """A known issue, and what a gate saw of it.

    Attributes
    ----------
    name : str
        What it is about: component, implementation, property, condition.
    state : str
        What became of it, in words.
    closes : bool
        Whether the gate is closed by it.
    link, expires : str
        Where it is tracked, and until which day it is accepted.
    """

    name: str
    state: str
    closes: bool
    link: str
    expires: str


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes
    ----------
    npudiff : str
        Version of npudiff.
    command : str
        ``check`` or ``gate``.
    started : str
        UTC, as ``2026-01-31T08:05:00Z``.
    seconds : float
        How long it took, by the clock.
    ended : str
        Whether it came to its end.
    problem : str
        Why it did not.
    environment : tuple of Said
        Versions.
    target, device, cann : str
        Where it ran.
    profile, seed, examples, budget : str
        How cases were drawn; empty for what was not said.
    scope : tuple of str
        What the run was narrowed to: ``--where``, ``--profile``, ``--case``. Empty for a whole run.
    judged : bool
        Whether a mutant that was not found is the run's fault.
    jobs, findings, mutants : tuple
        What came out.
    known : tuple of KnownRecord
        Known issues of a gate.
    gate : str
        Whether a gate was open, and if not, why; empty for any other run.
    """

    npudiff: str
    command: str
    started: str
    seconds: float
    ended: Ended
    problem: str
    environment: tuple[Said, ...]
    target: str
    device: str
    cann: str
    profile: str
    seed: str
    examples: str
    budget: str
    scope: tuple[str, ...]
    judged: bool
    jobs: tuple[JobRecord, ...]
    findings: tuple[FindingRecord, ...]
    mutants: tuple[MutantRecord, ...]
    known: tuple[KnownRecord, ...] = ()
    gate: str = ""
