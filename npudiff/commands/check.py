"""``npudiff check``: run the plan, write findings, say what was seen."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from npudiff.errors import ExitCode, UsageError
from npudiff.findings.finding import Finding, read_finding
from npudiff.findings.shared import EXAMPLES, FINDINGS, plan_with_shared
from npudiff.judge.properties import EQUIVALENCE
from npudiff.model.codec import loads
from npudiff.model.job import Job
from npudiff.model.outcome import Outcome, Verdict
from npudiff.run.engine import run_case, run_job
from npudiff.run.isolation.journal import JOURNALS, left_behind
from npudiff.run.plan import Plan, Request
from npudiff.run.workers import Result, run_in_workers
from npudiff.show.console import Console
from npudiff.show.finding_page import keep_findings, keeper
from npudiff.show.run_page.write import RunSummary, keep_record


def check(options: argparse.Namespace) -> int:
    """Run ``npudiff check`` and return its exit code."""
    plan = plan_with_shared(_request_of_check(options))
    cases = None if options.case is None else _single_case(plan, options.case)
    console = Console(verbose=options.verbose)
    console.header(plan)
    console.left_behind(left_behind(options.output / JOURNALS))
    run = _Run(plan, console, options.output, options.case)
    try:
        if cases is not None:
            for job, case in cases:
                run.add(run_case(job, case, plan.budget(job).isolation))
        else:
            run.everything()
    except BrokenPipeError as error:
        run.record(error)
        raise
    except BaseException as error:  # interrupted, or a defect of a component: what was found before is not lost
        run.record(error)
        run.report()
        raise
    run.record()
    return run.report()


class _Run:
    """The outcomes of a run so far; a finding is written as soon as it is there."""

    def __init__(self, plan: Plan, console: Console, root: Path, case: str | None) -> None:
        self.plan, self.console, self.root, self.case = plan, console, root, case
        self.folder = root / FINDINGS
        self.began, self.started = time.time(), time.perf_counter()
        self.outcomes: list[Outcome] = []
        self.mutants: list[Outcome] = []
        self.findings: list[tuple[Finding, Path]] = []

    def everything(self) -> None:
        """Run all jobs of the plan."""
        if self.plan.workers > 1 or self.plan.isolation is not None:
            self._in_workers()
            return
        with self.console.progress(self.plan) as progress:
            for job in self.plan.jobs:
                self.add(run_job(job, self.plan.budget(job), progress.case))
                progress.job(self.outcomes[-1])
            for job in self.plan.mutants:
                self.mutants.append(run_job(job, self.plan.budget(job), progress.case))
                self.mutants[-1].settle()
                progress.job(self.mutants[-1])

    def _in_workers(self) -> None:
        """Run all jobs in several processes; they are shown in the order of the plan."""
        done: dict[int, tuple[Outcome, list[Path]]] = {}
        try:
            results = run_in_workers(self.plan.tasks(keeper(self.folder)), self.plan.workers)
            with contextlib.closing(results):
                self._follow(results, done)
        finally:
            for index in sorted(done):
                outcome, folders = done[index]
                (self.outcomes if index < len(self.plan.jobs) else self.mutants).append(outcome)
                self.findings += [(read_finding(folder), folder) for folder in folders]

    def _follow(self, results: Iterator[Result], done: dict[int, tuple[Outcome, list[Path]]]) -> None:
        """Show progress while results come."""
        first = next(results, None)  # workers are forked before the bar starts its thread
        with self.console.progress(self.plan) as progress:
            for index, outcome, folders in itertools.chain([] if first is None else [first], results):
                done[index] = (outcome, folders)
                progress.cases(outcome.cases)
                progress.job(outcome)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, and write what it has to report."""
        self.outcomes.append(outcome)
        self.findings += keep_findings(outcome, self.folder)

    def record(self, error: BaseException | None = None) -> None:
        """Leave a record of what there is, from which ``npudiff report`` makes a page."""
        seconds = time.perf_counter() - self.started
        said = (self.outcomes, self.mutants, self.findings, self.began, seconds, error, self.case)
        keep_record(RunSummary(self.plan, *said), self.root)

    def report(self) -> int:
        """Show everything and return the exit code."""
        self.console.table(self.outcomes)
        self._show_findings()
        judged = self.plan.judges_mutants
        self.console.mutants(self.mutants, judged=judged)
        seconds = time.perf_counter() - self.started
        self.console.summary(self.outcomes, self.mutants, judged=judged, seconds=seconds)
        if self.findings:
            return ExitCode.FINDINGS
        if not any(outcome.cases for outcome in (*self.outcomes, *self.mutants)):
            return ExitCode.NOTHING_RAN
        missed = judged and any(outcome.verdict is Verdict.HOLDS for outcome in self.mutants)
        return ExitCode.FINDINGS if missed else ExitCode.CLEAN

    def _show_findings(self) -> None:
        """Show each finding; in short where it says what was said before, or what equivalence says better.

        Where an implementation differs from the reference, relations between its runs are judged with a bound that is
        not made for its values.
        """
        wrong = {(f.component, f.implementation) for f, _ in self.findings if f.property_name == EQUIVALENCE.name}
        shown: set[tuple[object, ...]] = set()
        for finding, folder in self.findings:
            secondary = (finding.component, finding.implementation) in wrong
            again = finding.symptom in shown or (secondary and finding.property_name != EQUIVALENCE.name)
            shown.add(finding.symptom)
            (self.console.finding_again if again else self.console.finding)(finding, folder)


def request_of(options: argparse.Namespace) -> Request:
    """Turn command-line options into a request."""
    return Request(
        components=tuple(options.components),
        implementations=tuple(options.impl),
        target=options.target,
        cann=options.cann,
        examples=options.examples,
        example_database=options.output / EXAMPLES,
        isolate=options.isolate,
        journal=options.output / JOURNALS,
        timeout=options.timeout,
        warm_up=options.warm_up,
        workers=options.workers,
        shared=options.shared,
    )


def _request_of_check(options: argparse.Namespace) -> Request:
    return replace(
        request_of(options),
        seconds=options.budget,
        seed=options.seed,
        model=options.profile,
        where=tuple(options.where),
        hypothesis_profile=options.hypothesis_profile,
    )


def _single_case(plan: Plan, text: str) -> list[tuple[Job, object]]:
    components = {job.subject.component.name: job.subject.component for job in (*plan.jobs, *plan.mutants)}
    if len(components) != 1:
        raise UsageError(f"--case needs exactly one component, got {', '.join(sorted(components))}")
    component = next(iter(components.values()))
    try:
        case = loads(component.case_type, text)
        component.check_case(case)
    except ValueError as error:
        raise UsageError(f"--case: {str(error).removeprefix('case: ')}") from None
    return [(job, case) for job in plan.jobs if job.prop is EQUIVALENCE]
