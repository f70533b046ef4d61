"""Running a gate: the same cases every time, known issues again, then other cases until the time is up."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npudiff.errors import DeviceLost
from npudiff.findings.finding import Finding, read_finding
from npudiff.gate.result import GateResult, Part, ReportedFinding
from npudiff.gate.rotation import seed_of
from npudiff.gate.triage import Triage, is_known, judged
from npudiff.model.job import Job
from npudiff.model.outcome import Outcome
from npudiff.run.engine import run_job
from npudiff.run.messages import Task
from npudiff.run.workers import Result, run_in_workers
from npudiff.show.finding_page import keeper

Follow = Callable[[str, Outcome], None]


@dataclass(frozen=True)
class GateConfig:
    """How a gate is run."""

    triage: Triage
    """Jobs, and known issues that are looked at."""
    touched: Collection[tuple[str, str]]
    """Component and implementation of those that come first."""
    rotating: str
    """One of ``rotation.ROTATING``."""
    findings: Path
    known: Path
    """Folders for findings, and for those of known issues."""
    follow: Follow
    """Called with the part and each outcome."""


def run_gate(result: GateResult, course: GateConfig) -> None:
    """Run a gate; the result is filled as it goes, so that it says what was seen whatever ends the run.

    Raises
    ------
    DeviceLost
        If the device gives no known answer any more; the result says so as well.
    """
    started = time.monotonic()
    gate = _Gate(result, course, started + result.budget)
    try:
        gate.shared()
        gate.fixed()
        gate.known()
        if course.rotating != "off":
            gate.rotate()
    except DeviceLost as error:
        result.lost = str(error)
        raise
    except BaseException as error:
        result.ended = type(error).__name__
        raise
    finally:
        result.seconds = time.monotonic() - started


class _Gate:
    """A run of a gate so far."""

    def __init__(self, result: GateResult, course: GateConfig, until: float) -> None:
        self._result, self._course, self._until = result, course, until
        self._plan = result.plan
        jobs = course.triage.jobs
        self._jobs = sorted(jobs, key=lambda job: job.subject.names not in course.touched)  # a stable sort
        self._failed: set[str] = set()

    @property
    def _left(self) -> float:
        return self._until - time.monotonic()

    def shared(self) -> None:
        """Run the cases that failed for others, and nothing else."""
        tasks = [task for task in (self._task(job, examples=0) for job in self._jobs) if task[1].explicit_cases]
        for _, outcome, folders in self._results(tasks):
            self._add(Part.SHARED, outcome, folders, warns=self._course.rotating != "fails")
            if self._left < 0:
                break

    def fixed(self) -> None:
        """Run every job on the cases that it always has."""
        tasks = [self._task(job, explicit_cases=()) for job in self._jobs]
        waiting = {index: job.name for index, (job, _, _) in enumerate(tasks)}
        try:
            for index, outcome, folders in self._results(tasks):
                del waiting[index]
                self._add(Part.FIXED, outcome, folders, warns=False)
                if self._left < 0:
                    break
        finally:
            self._result.unfinished += waiting.values()

    def known(self) -> None:
        """Run cases of known issues: those that do not fail any more have to go."""
        tasks: list[Task] = []
        numbers: list[int] = []
        again = self._course.triage.again
        for number, (issue, jobs) in enumerate(again):
            first = (issue.case,) if issue.case else ()
            for job in jobs:
                tasks.append(
                    (
                        job,
                        replace(self._plan.budget(job), shrink=False, explicit_cases=first),
                        keeper(self._course.known),
                    )
                )
                numbers.append(number)
        seen: list[list[tuple[Outcome, list[Finding]]]] = [[] for _ in again]
        if self._left > 0:
            for index, outcome, folders in self._results(tasks):
                found = [(read_finding(folder), folder) for folder in folders]
                seen[numbers[index]].append((outcome, [finding for finding, _ in found]))
                self._result.findings += [
                    ReportedFinding(finding, folder, Part.KNOWN)
                    for finding, folder in found
                    if not is_known(again[numbers[index]][0], finding)
                ]
                self._course.follow(Part.KNOWN.value, outcome)
                if self._left < 0:
                    break
        for (issue, jobs), runs in zip(again, seen, strict=True):
            complete = len(runs) == len(jobs) or any(found for _, found in runs)
            self._result.known.append(judged(issue, runs if complete else []))
            self._result.unfinished += [] if complete else [f"known issue {issue.name}"]
        self._result.known += self._course.triage.settled

    def rotate(self) -> None:
        """Run jobs that hold on other cases, again and again, until the time is up."""
        for turn in _turns():
            if self._left <= 0:
                return
            before = self._result.cases
            self._result.turns = turn
            self._turn(turn, [job for job in self._jobs if job.name not in self._failed])
            if self._result.cases == before:  # nothing can be drawn
                return

    def _turn(self, turn: int, jobs: Sequence[Job]) -> None:
        # As if nobody had chosen the seeds: what fails is remembered, can be published, and comes first next time.
        drawn = {"deterministic": False, "until": self._until, "explicit_cases": ()}
        rotation = self._result.rotation
        tasks = [self._task(job, fallback_seed=seed_of(rotation, turn, job.name), **drawn) for job in jobs]
        warns = self._course.rotating == "warns"
        for _, outcome, folders in self._results(tasks):
            self._add(Part.ROTATING, outcome, folders, warns=warns)

    def _task(self, job: Job, **changes: Any) -> Task:  # noqa: ANN401 - fields of a budget
        """A job as the plan has it, but for some of its budget."""
        return job, replace(self._plan.budget(job), **changes), keeper(self._course.findings)

    def _add(self, part: Part, outcome: Outcome, folders: Sequence[Path], *, warns: bool) -> None:
        self._result.outcomes.append((part, outcome))
        self._course.follow(part.value, outcome)
        if folders:
            self._failed.add(outcome.job.name)
        others = [told for told in self._result.findings if told.folder not in folders]  # of a part before, the same
        self._result.findings = [
            *others,
            *(ReportedFinding(read_finding(folder), folder, part, warns) for folder in folders),
        ]

    def _results(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Run tasks as the plan says: in processes, or here."""
        if not tasks:
            return
        if self._plan.workers > 1 or self._plan.isolation is not None:
            with contextlib.closing(run_in_workers(tasks, self._plan.workers)) as results:
                yield from results
            return
        for index, (job, budget, keep) in enumerate(tasks):
            outcome = run_job(job, budget)
            yield index, outcome, [] if keep is None else list(keep(outcome))


def _turns() -> Iterator[int]:
    return itertools.count(1)
