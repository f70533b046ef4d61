"""``npudiff check``: run the plan, write findings, say what was seen."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from npudiff.codec import loads
from npudiff.console import Console
from npudiff.engine import EQUIVALENCE, run_case, run_job
from npudiff.errors import ExitCode, UsageError
from npudiff.finding_page import keep_findings
from npudiff.findings import Finding, read_finding
from npudiff.isolation.journal import JOURNALS, left_behind
from npudiff.outcome import Job, Outcome, Verdict
from npudiff.plan import Plan, Request, make_plan
from npudiff.workers import Result, run_in_workers


def check(options: argparse.Namespace) -> int:
    """Run ``npudiff check`` and return its exit code."""
    plan = make_plan(request_of(options))
    cases = None if options.case is None else _single_case(plan, options.case)
    console = Console(verbose=options.verbose)
    console.header(plan)
    console.left_behind(left_behind(options.output / JOURNALS))
    run = _Run(plan, console, options.output / "findings")
    try:
        if cases is not None:
            for job, case in cases:
                run.add(run_case(job, case, plan.budget(job).isolation))
        else:
            run.everything()
    except BrokenPipeError:
        raise
    except BaseException:  # interrupted, or a defect of a component: what was found before is not lost
        run.report()
        raise
    return run.report()


class _Run:
    """The outcomes of a run so far; a finding is written as soon as it is there."""

    def __init__(self, plan: Plan, console: Console, folder: Path) -> None:
        self.plan, self.console, self.folder = plan, console, folder
        self.started = time.perf_counter()
        self.outcomes: list[Outcome] = []
        self.mutants: list[Outcome] = []
        self.findings: list[tuple[Finding, Path]] = []

    def everything(self) -> None:
        """Run all jobs of the plan."""
        if self.plan.workers > 1:
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
        jobs = (*self.plan.jobs, *self.plan.mutants)
        tasks = [(job, self.plan.budget(job), self.folder if job in self.plan.jobs else None) for job in jobs]
        done: dict[int, tuple[Outcome, list[Path]]] = {}
        try:
            results = run_in_workers(tasks, self.plan.workers)
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
        seconds=options.budget,
        seed=options.seed,
        model=options.profile,
        where=tuple(options.where),
        hypothesis_profile=options.hypothesis_profile,
        memory=options.output / "examples",
        isolate=options.isolate,
        journal=options.output / JOURNALS,
        timeout=options.timeout,
        warm_up=options.warm_up,
        workers=options.workers,
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
        raise UsageError(f"--case: {error}") from None
    return [(job, case) for job in plan.jobs if job.prop is EQUIVALENCE]
