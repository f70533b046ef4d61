"""``npudiff score``: how many of the bugs that were planted are found, by npudiff and by ordinary tests."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from npudiff.errors import ExitCode, UsageError, unknown
from npudiff.judge.properties import EQUIVALENCE
from npudiff.model.job import Job
from npudiff.model.version import VERSION
from npudiff.run.plan import Plan, Request, make_plan
from npudiff.score.methods import METHODS, Method
from npudiff.score.page import page
from npudiff.score.suite import SUITE, run_suite
from npudiff.score.summary import encode, reliably_found, scores
from npudiff.score.table import lines_of, table_of
from npudiff.score.trials import Trial, run_trials
from npudiff.show.console import Console


def score(options: argparse.Namespace) -> int:
    """Run ``npudiff score`` and return its exit code: 1 if a mutant is lost, or a correct implementation accused."""
    methods = _methods(options)
    judged = METHODS[0].name if METHODS[0] in methods else SUITE
    if options.expect is not None and judged == SUITE and options.suite is None:
        raise UsageError(f"--expect is about {METHODS[0].name} or a --suite, and neither is run")
    before = set() if options.expect is None else reliably_found(options.expect, judged)
    plan = make_plan(Request(components=tuple(options.components), target=options.target, cann=options.cann))
    jobs = _jobs(plan, options.mutant)
    console = Console(verbose=False)
    mutants = {_name(job) for job in jobs if job.subject.implementation.wrong is not None}
    told = f"{len(mutants)} mutants, {len(jobs) - len(mutants)} correct implementations"
    console.lines([f"npudiff {VERSION} · target {plan.target.name}, CANN {plan.target.cann} · {told}"])
    started = time.perf_counter()
    trials = _run(jobs, methods, options, plan.workers if options.workers is None else options.workers, console)
    console.rich.print(table_of(scores(trials)))
    console.lines(list(lines_of(trials)))
    about = {
        "npudiff": VERSION,
        "target": plan.target.name,
        "cann": plan.target.cann,
        "examples": options.examples,
        **({} if options.suite is None else {"suite": options.suite}),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _write(options.output, trials, about, console)
    if options.record is not None:
        options.record.write_text(encode(trials, about, brief=True), encoding="utf-8")
    return _verdict(console, trials, judged, before & mutants)


def _jobs(plan: Plan, names: list[str]) -> list[Job]:
    """Return what is tested: the mutants that were named, or all of them and every correct implementation."""
    if not names:
        return [*plan.mutants, *(job for job in plan.jobs if job.prop is EQUIVALENCE)]
    known = {job.subject.implementation.name: job for job in plan.mutants}
    missing = [name for name in names if name.rpartition(".")[2] not in known]
    if missing:
        raise unknown("mutant", missing[0], known)
    return [known[name.rpartition(".")[2]] for name in names]


def _methods(options: argparse.Namespace) -> Sequence[Method]:
    """Return the methods of these names; without names all, or none beside somebody's own suite."""
    known = {method.name: method for method in METHODS}
    for name in options.method:
        if name not in known:
            raise unknown("method", name, known)
    return [known[name] for name in options.method] or (() if options.suite else METHODS)


def _name(job: Job) -> str:
    return f"{job.subject.component.name}.{job.subject.implementation.name}"


def _run(
    jobs: list[Job], methods: Sequence[Method], options: argparse.Namespace, workers: int, console: Console
) -> list[Trial]:
    """Run all methods, with a bar that says where they are."""
    with _progress(console) as progress:
        task = progress.add_task("trials", total=None)

        def follow(trial: Trial) -> None:
            progress.update(task, advance=1, description=f"{trial.method}: {trial.mutant}")

        trials: list[Trial] = []
        if options.suite is not None:
            mutants = [job.subject.implementation for job in jobs if job.subject.implementation.wrong is not None]
            trials += run_suite(options.suite, mutants, options.output / SUITE, workers=workers, follow=follow)
        if methods:
            trials += run_trials(
                jobs,
                seeds=range(1, options.seeds + 1),
                baseline_seeds=range(1, options.baseline_seeds + 1),
                examples=options.examples,
                workers=workers,
                methods=methods,
                seconds=options.budget,
                follow=follow,
            )
        return trials


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console.rich, transient=True, disable=not console.rich.is_terminal)


def _write(folder: Path, trials: list[Trial], about: dict[str, object], console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(encode(trials, about), encoding="utf-8")
    (folder / "score.html").write_text(page(trials, about), encoding="utf-8")
    console.lines([f"written: {folder / 'score.json'}, {folder / 'score.html'}"])


def _verdict(console: Console, trials: list[Trial], judged: str, before: set[str]) -> int:
    """Say which mutants were found before and are not any more, and which correct implementations are accused."""
    if not trials:
        return ExitCode.NOTHING_RAN
    lost = sorted(before & {name for score in scores(trials) if score.method == judged for name in score.missed})
    for name in lost:
        console.lines([f"LOST {name}: it was found reliably before, and is not any more"])
    accused = [trial for trial in trials if trial.method == judged and trial.right and trial.found]
    for trial in accused:
        console.lines([f"FALSE ALARM {trial.mutant}, seed {trial.seed}: {trial.case}"])
    return ExitCode.FINDINGS if lost or accused else ExitCode.CLEAN
