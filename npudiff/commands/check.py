"""``npudiff check``: run the plan, write findings, say what was seen."""

from __future__ import annotations

import argparse
from pathlib import Path

from npudiff.codec import loads
from npudiff.console import Console
from npudiff.engine import EQUIVALENCE, run_case, run_job
from npudiff.errors import ExitCode, UsageError
from npudiff.evidence import finding_of
from npudiff.findings import Finding, write_finding
from npudiff.outcome import Job, Outcome, Verdict
from npudiff.plan import Plan, Request, make_plan


def check(options: argparse.Namespace) -> int:
    """Run ``npudiff check`` and return its exit code."""
    plan = make_plan(request_of(options))
    cases = None if options.case is None else _single_case(plan, options.case)
    console = Console(verbose=options.verbose)
    console.header(plan)
    run = _Run(plan, console, options.output / "findings")
    try:
        if cases is not None:
            for job, case in cases:
                run.add(run_case(job, case))
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
        self.outcomes: list[Outcome] = []
        self.mutants: list[Outcome] = []
        self.findings: list[tuple[Finding, Path]] = []

    def everything(self) -> None:
        """Run all jobs of the plan."""
        with self.console.progress(self.plan) as progress:
            for job in self.plan.jobs:
                self.add(run_job(job, self.plan.budget(job), progress.case))
                progress.job(self.outcomes)
            for job in self.plan.mutants:
                self.mutants.append(run_job(job, self.plan.budget(job), progress.case))
                progress.job(self.mutants)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, and write its finding."""
        self.outcomes.append(outcome)
        if outcome.failure is not None:
            finding = finding_of(outcome)
            self.findings.append((finding, write_finding(finding, outcome.failure, self.folder)))

    def report(self) -> int:
        """Show everything and return the exit code."""
        self.console.table(self.outcomes)
        self._show_findings()
        judged = self.plan.judges_mutants
        self.console.mutants(self.mutants, judged=judged)
        self.console.summary(self.outcomes, self.mutants, judged=judged)
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
