"""``npudiff check``: run the plan, write findings, say what was seen."""

from __future__ import annotations

import argparse
from pathlib import Path

from npudiff.codec import loads
from npudiff.console import Console
from npudiff.engine import EQUIVALENCE, run_case, run_job
from npudiff.errors import ExitCode, UsageError
from npudiff.evidence import finding_of
from npudiff.findings import write_finding
from npudiff.outcome import Job, Outcome, Verdict
from npudiff.plan import Plan, Request, make_plan


def check(options: argparse.Namespace) -> int:
    """Run ``npudiff check`` and return its exit code."""
    plan = make_plan(request_of(options))
    cases = None if options.case is None else _single_case(plan, options.case)
    console = Console(verbose=options.verbose)
    console.header(plan)
    findings = options.output / "findings"
    outcomes: list[Outcome] = []
    mutants: list[Outcome] = []
    try:
        if cases is not None:
            outcomes = [run_case(job, case) for job, case in cases]
        else:
            with console.progress(plan) as progress:
                for job in plan.jobs:
                    outcomes.append(run_job(job, plan.budget(job), progress.case))
                    progress.job(outcomes)
                for job in plan.mutants:
                    mutants.append(run_job(job, plan.budget(job), progress.case))
                    progress.job(mutants)
    except BrokenPipeError:
        raise
    except BaseException:  # interrupted, or a defect of a component: what was found before is not lost
        _report(console, outcomes, mutants, findings)
        raise
    return _report(console, outcomes, mutants, findings)


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


def _report(console: Console, outcomes: list[Outcome], mutants: list[Outcome], findings: Path) -> int:
    console.table(outcomes)
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    shown: set[tuple[object, ...]] = set()
    for outcome in failed:
        if outcome.failure is not None:
            finding = finding_of(outcome)
            folder = write_finding(finding, outcome.failure, findings)
            again = finding.symptom in shown
            shown.add(finding.symptom)
            (console.finding_again if again else console.finding)(finding, folder)
    console.mutants(mutants)
    missed = [outcome for outcome in mutants if outcome.verdict is Verdict.HOLDS]
    console.summary(outcomes, mutants)
    if failed:
        return ExitCode.FINDINGS
    if not any(outcome.cases for outcome in (*outcomes, *mutants)):
        return ExitCode.NOTHING_RAN
    return ExitCode.FINDINGS if missed else ExitCode.CLEAN
