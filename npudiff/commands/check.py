"""``npudiff check``: run the plan, write findings, say what was seen."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.errors import ExitCode, UsageError
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import EXAMPLES, FINDINGS, JOURNALS, begin_output, write_file
from npudiff.findings.causes import by_cause
from npudiff.findings.log import LoggedFinding, RunLog
from npudiff.findings.shared import plan_with_shared
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.case import loads
from npudiff.model.job import LEAST_TIMEOUT, TIMEOUT, Job
from npudiff.run.further import further
from npudiff.run.isolation.journal import left_behind
from npudiff.run.messages import Keep, Task
from npudiff.run.plan import Plan, Request
from npudiff.run.run import Run
from npudiff.run.timing import TimedCase, timed_apart
from npudiff.show.console import Console
from npudiff.show.finding import keeper
from npudiff.show.junit import junit
from npudiff.show.problems import Level, Problem, problems_of_findings
from npudiff.show.progress import RunProgress
from npudiff.show.run_content import run_content
from npudiff.show.run_page.write import RecordKeeper, summary_of
from npudiff.show.source_location import root_of_files
from npudiff.text import counted, printable


def check(options: argparse.Namespace) -> int:
    """Run ``npudiff check`` and return its exit code."""
    return run_plan(plan_with_shared(_request_of_check(options)), options, case=options.case, junit_file=options.junit)


def run_plan(
    plan: Plan, options: argparse.Namespace, *, case: str | None = None, junit_file: Path | None = None
) -> int:
    """Run a plan, show what was seen, leave the record of it, and return the exit code.

    Parameters
    ----------
    plan : Plan
        What is run.
    options : argparse.Namespace
        Where findings go, and how much is shown.
    case : str or None
        The one case that is run, as JSON.
    junit_file : pathlib.Path or None
        Where results are written as JUnit XML.
    """
    begin_output(options.output)
    tasks = _tasks(plan, keeper(options.output / FINDINGS), case)
    console, log = Console(verbose=options.verbose), RunLog(plan)
    unwritten = Unwritten()
    record = RecordKeeper(lambda: summary_of(log, case=case), options.output, unwritten)
    timings: dict[tuple[str, str], list[TimedCase]] = {}
    if options.json is not None:
        options.json.content = lambda: run_content(
            summary_of(log, case=case), log.findings, log.unjudged, unwritten.lines, timings
        )
    console.header(plan)
    console.left_behind(left_behind(options.output / JOURNALS))
    code: int = ExitCode.INTERNAL
    if junit_file is not None:
        with contextlib.suppress(OSError):  # so that a run that is killed leaves neither none nor that of another run
            write_file(junit_file, _junit(log))
    try:
        progress = RunProgress(console.rich, jobs=len(tasks))
        until = None if plan.request.seconds is None else time.monotonic() + plan.request.seconds
        tasks = [one._replace(budget=replace(one.budget, until=until)) for one in tasks]
        with Run(plan.workers, [log, record, progress]) as run:
            run.run(tasks)
            rounds = plan.request.most_causes if case is None and plan.request.seconds is None else 1
            for _ in range(1, rounds):  # a run that has a time has used it by now
                if more := further(log.ended, tasks):
                    progress.expect(len(more))
                    run.run(more)
    finally:  # interrupted, or a defect of a component: what was found before is not lost
        log.add_untold(options.output / FINDINGS)
        record.close()
        if options.timed and log.error is None:
            timings |= timed_apart(log.outcomes, plan.request.seed)
        if not isinstance(log.error, BrokenPipeError):
            code = _report(log, console, timings)
        if junit_file is not None:
            with unwritten.trying(str(junit_file), asked=True):
                write_file(junit_file, _junit(log))
        note_findings(log.findings, unwritten)
        unwritten.tell()
    return unwritten.code(code)


def note_findings(findings: Sequence[LoggedFinding], unwritten: Unwritten) -> None:
    """Remember which findings could not be written, or not all of it."""
    for why, count in Counter(one.unwritten for one in findings if not one.written).items():
        unwritten.note_findings(count, why)
    for why, count in Counter(one.problem for one in findings if one.problem and one.written).items():
        unwritten.note(f"tensors and pages of {counted(count, 'finding')}", why)


def _report(log: RunLog, console: Console, timings: Mapping[tuple[str, str], Sequence[TimedCase]]) -> int:
    """Show everything and return the exit code."""
    outcomes, mutants, judged = log.outcomes, log.mutants, log.plan.judges_mutants
    console.table(outcomes)
    causes = by_cause(log.findings)
    for first, *rest in causes:  # one of each in full, and in short what else sees it
        console.finding(first.finding, first.folder, unwritten=first.unwritten)
        console.findings_again(first.finding, rest)
    console.mutants(mutants, judged=judged)
    if log.plan.request.seconds is not None and log.error is None:
        console.unreached([*outcomes, *mutants])
    console.doubts(outcomes)
    console.timings(timings, log.plan.target)
    console.summary(outcomes, mutants, judged=judged, seconds=log.seconds, causes=len(causes), workers=log.plan.workers)
    console.unjudged(log.unjudged)
    return log.code


def _junit(log: RunLog) -> str:
    root = root_of_files()
    problems = [*problems_of_findings(log.findings, log.plan, root), *_other_problems(log)]
    return junit(log.plan.jobs, log.outcomes, problems, root, log.seconds)


def _other_problems(log: RunLog) -> Iterator[Problem]:
    """Yield what fails a run besides findings: a reader of JUnit alone must not take it for green."""
    if log.error is not None:
        yield Problem(Level.ERROR, "ended-early", printable(f"ended early: {type(log.error).__name__}"))
    for names, why in log.unjudged.items():
        yield Problem(Level.ERROR, "not-judged", printable(f"no case of {'.'.join(names)} could be judged: {why}"))
    for outcome in log.mutants if log.plan.judges_mutants else ():
        if not outcome.found:
            title = f"{outcome.job.name} is wrong on purpose, and {outcome.cases} cases did not show it"
            yield Problem(Level.ERROR, "missed-mutant", title)


def request_of(options: argparse.Namespace, budget: float | None = None) -> Request:
    """Turn command-line options into a request; ``budget`` is the time of the run in seconds, if it has one."""
    return Request(
        components=tuple(options.components),
        own=tuple(options.own),
        implementations=tuple(options.impl),
        target=options.target,
        cann=options.cann,
        examples=options.examples,
        example_database=options.output / EXAMPLES,
        isolate=options.isolate,
        untrusted=options.untrusted,
        journal=options.output / JOURNALS,
        timeout=case_timeout(options.timeout, budget),
        warm_up=options.warm_up,
        workers=options.workers,
        shared=options.shared,
    )


def case_timeout(given: float | None, budget: float | None) -> float:
    """Return the seconds that a case may take.

    A case that hangs is waited for several times: in the batch worker, in a process of its own, as a smaller case and
    once more as the smallest. All of that has to fit into the time of a run.
    """
    if given is not None:
        return given
    return TIMEOUT if budget is None else min(TIMEOUT, max(LEAST_TIMEOUT, budget / 10))


def _request_of_check(options: argparse.Namespace) -> Request:
    return replace(
        request_of(options, options.budget),
        seconds=options.budget,
        seed=options.seed,
        model=options.model,
        where=tuple(options.where),
        hypothesis_profile=options.hypothesis_profile,
        mutants=1,
        causes=options.causes,
    )


def _tasks(plan: Plan, keep: Keep, case: str | None) -> list[Task]:
    """All jobs and mutants of the plan; or equivalence of each implementation on the one case that is given."""
    if case is None:
        return plan.tasks(keep)
    names = {job.subject.component.name for job in (*plan.jobs, *plan.mutants)}
    if len(names) != 1:
        raise UsageError(f"--case needs exactly one component, got {', '.join(sorted(names))}")
    refusals = {job.name: _refusal(job, case) for job in plan.jobs if job.prop is EQUIVALENCE}
    if all(refusals.values()):
        raise UsageError(f"--case: {next(iter(refusals.values()))}")
    only: dict[str, Any] = {"examples": 0, "explicit_cases": (case,), "example_database": None, "shrink": False}
    jobs = (job for job in plan.jobs if refusals.get(job.name) == "")
    return [Task(job, replace(plan.budget(job), **only), keep) for job in jobs]


def _refusal(job: Job, case: str) -> str:
    """Return why a text is no case of a job, or nothing; implementations with options have more fields than others."""
    component = job.subject.component
    try:
        component.check_case(loads(component.case_type, case))
    except ValueError as error:
        return str(error).removeprefix("case: ")
    return ""
