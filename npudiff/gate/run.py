"""The run of a gate: shared failures, the fixed cases, known issues, then other cases until the time is up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from npudiff.errors import DeviceLost
from npudiff.findings.finding import finding_of_plain
from npudiff.findings.log import LoggedFinding, logged, untold, without_those_again
from npudiff.gate.known import KnownIssue
from npudiff.gate.result import GateResult, Part, ReportedFinding
from npudiff.gate.rotation import seed_of
from npudiff.gate.triage import Triage, is_known, judged
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.job import Job, Outcome
from npudiff.run.events import Event, JobEnded, Listener
from npudiff.run.messages import Keep, Kept, Task
from npudiff.run.run import Run
from npudiff.show.finding import keeper, told_only


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
    """Folder for findings."""
    known: Path
    """Folder for findings of known issues."""
    listeners: Sequence[Listener] = ()
    """Who else is told of events."""


def run_gate(result: GateResult, config: GateConfig) -> None:
    """Run a gate; the result is filled as it goes, so that it says what was seen whatever ends the run.

    Raises
    ------
    DeviceLost
        If the device gives no known answer any more; the result says so as well.
    """
    started, began = time.monotonic(), time.time()
    gate = _Gate(result, config, started + result.budget)
    try:
        with Run(result.plan.workers, [gate, *config.listeners]) as run:
            gate.run(run)
        result.ended = ""
    except DeviceLost as error:
        result.lost, result.ended = str(error), ""
        raise
    except BaseException as error:
        result.ended = type(error).__name__
        raise
    finally:
        gate.add_untold(began)
        result.seconds = time.monotonic() - started


class _Gate:
    """Runs the parts of a gate; it listens to the run and fills the result."""

    def __init__(self, result: GateResult, config: GateConfig, until: float) -> None:
        self._result, self._config, self._until = result, config, until
        self._keep = keeper(config.findings)
        jobs = config.triage.jobs
        self._jobs = sorted(jobs, key=lambda job: job.subject.names not in config.touched)  # a stable sort
        self._failed: set[str] = set()
        self._ended: list[JobEnded] = []
        """Jobs of the part that is run."""
        self._part = Part.SHARED

    def run(self, run: Run) -> None:
        """Run the parts."""
        self._run = run
        self._shared()
        self._fixed()
        self._known()
        if self._config.rotating != "off":
            self._rotate()

    def __call__(self, event: Event) -> None:
        """Add a job to the result."""
        if not isinstance(event, JobEnded):
            return
        self._ended.append(event)
        part = Part(event.stage)
        if part is Part.KNOWN:
            return
        self._result.outcomes.append((part, event.outcome))
        if event.kept:
            self._failed.add(event.outcome.job.name)
        self._result.findings = without_those_again(self._result.findings, event)  # of a part before, the same
        self._result.findings += [_reported(one, warns=self._warns(part)) for one in logged(event)]

    def add_untold(self, began: float) -> None:
        """Add findings that a job had written when the time was up, and of which no event came any more."""
        told = [one.folder for one in self._result.findings]
        for finding, folder in untold(self._config.findings, began, told):
            warns = self._warns(self._part)
            self._result.findings.append(ReportedFinding(finding, folder, self._part.value, warns=warns))

    def _warns(self, part: Part) -> bool:
        """Whether what a part finds is told only."""
        warns = part is not Part.FIXED and self._config.rotating == "warns"
        return warns or (part is Part.SHARED and self._config.rotating != "fails")

    @property
    def _left(self) -> float:
        return self._until - time.monotonic()

    def _stage(self, part: Part, tasks: Sequence[Task]) -> None:
        self._ended, self._part = [], part
        if tasks:
            self._run.run(tasks, stage=part.value, until=self._until)

    def _shared(self) -> None:
        """Run the cases that failed for others."""
        tasks = (self._task(job, examples=0) for job in self._jobs)
        self._stage(Part.SHARED, [task for task in tasks if task.budget.explicit_cases])

    def _fixed(self) -> None:
        """Run every job on its fixed cases."""
        tasks = [self._task(job, explicit_cases=()) for job in self._jobs]
        try:
            self._stage(Part.FIXED, tasks)
        finally:
            done = {one.index for one in self._ended}
            self._result.unfinished += [task.job.name for index, task in enumerate(tasks) if index not in done]

    def _known(self) -> None:
        """Run cases of known issues, to see whether they still fail."""
        issues = [_Again(issue, _equivalence_first(jobs)) for issue, jobs in self._config.triage.again]
        self._run_again([(one, one.jobs[0]) for one in issues])
        self._run_again([(one, job) for one in issues if one.open for job in one.jobs[1:]])
        for one in issues:
            self._judge_known(one)
        self._result.known += self._config.triage.settled

    def _run_again(self, jobs: Sequence[tuple[_Again, Job]]) -> None:
        """Run cases of issues: that they fail is all that anybody wants to know."""
        tasks = []
        for one, job in jobs:
            issue = one.issue
            how: dict[str, Any] = {"shrink": False, "explains": False}
            how["explicit_cases"] = (issue.case,) if issue.case else ()
            tasks.append(self._task(job, _keep_of(issue, self._config.known), **how))
        self._stage(Part.KNOWN, tasks if self._left > 0 else [])
        for ended in self._ended:
            jobs[ended.index][0].ended.append(ended)

    def _judge_known(self, one: _Again) -> None:
        """Add what became of an issue, and what was found in its cases that it does not say."""
        found = [logged(ended) for ended in one.ended]
        self._result.findings += [
            _reported(told, warns=False) for mine in found for told in mine if not is_known(one.issue, told.finding)
        ]
        runs = [(ended.outcome, [told.finding for told in mine]) for ended, mine in zip(one.ended, found, strict=True)]
        complete = len(runs) == len(one.jobs) or any(found)
        self._result.known.append(judged(one.issue, runs if complete else []))
        self._result.unfinished += [] if complete else [f"known issue {one.issue.name}"]

    def _rotate(self) -> None:
        """Run jobs that hold on other cases, again and again, until the time is up."""
        for turn in _turns():
            if self._left <= 0:
                return
            before = self._result.cases
            self._result.turns = turn
            # As if nobody had chosen the seeds: what fails is remembered, can be published, and comes first next time.
            seeds = {job.name: seed_of(self._result.rotation, turn, job.name) for job in self._jobs}
            jobs = [job for job in self._jobs if job.name not in self._failed]
            changes: dict[str, Any] = {"deterministic": False, "until": self._until, "explicit_cases": ()}
            tasks = [self._task(job, None, fallback_seed=seeds[job.name], **changes) for job in jobs]
            self._ended, self._part = [], Part.ROTATING
            self._run.run(tasks, stage=Part.ROTATING.value)
            if self._result.cases == before:  # nothing can be drawn
                return

    def _task(self, job: Job, keep: Keep | None = None, **changes: Any) -> Task:  # noqa: ANN401 - fields of a budget
        """A job as the plan has it, but for some of its budget."""
        return Task(job, replace(self._result.plan.budget(job), **changes), keep or self._keep)


@dataclass
class _Again:
    """A known issue that is looked at."""

    issue: KnownIssue
    jobs: Sequence[Job]
    """Jobs that draw its cases."""
    ended: list[JobEnded] = field(default_factory=list)
    """Those that have ended."""

    @property
    def open(self) -> bool:
        """Whether other jobs may say more: where the issue has no verdict, whatever else fails is known too."""
        return bool(self.issue.verdict) or not any(one.kept for one in self.ended)


def _keep_of(issue: KnownIssue, root: Path) -> Keep:
    """Return what writes findings in the cases of an issue: one of equivalence, and what the issue does not say.

    Of an issue that a dozen relations see as well, one folder is evidence enough.
    """
    write, tell = keeper(root), told_only("a known issue, of which there is a finding of equivalence")

    def keep(outcome: Outcome) -> Sequence[Kept]:
        told = tell(outcome)
        again = outcome.job.prop is not EQUIVALENCE and not issue.prop
        return told if again and all(is_known(issue, finding_of_plain(one.content)) for one in told) else write(outcome)

    return keep


def _equivalence_first(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: job.prop is not EQUIVALENCE)


def _reported(found: LoggedFinding, *, warns: bool) -> ReportedFinding:
    return ReportedFinding(**vars(found), warns=warns)


def _turns() -> Iterator[int]:
    return itertools.count(1)
