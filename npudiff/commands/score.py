"""``npudiff score``: how many of the bugs that were planted are found, by npudiff and by ordinary tests."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from npudiff.errors import ExitCode, UsageError, unknown
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import begin_output, check_output, write_file
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.job import Job
from npudiff.model.version import VERSION
from npudiff.run.plan import Plan, Request, make_plan
from npudiff.score.methods import METHODS, Method
from npudiff.score.page import page
from npudiff.score.progress import TrialProgress
from npudiff.score.suite import SUITE, run_suite
from npudiff.score.summary import document_of, encode, reliably_found, scores
from npudiff.score.table import lines_of, table_of
from npudiff.score.trials import Trial, run_trials
from npudiff.show.console import Console

JSON_FILE, PAGE_FILE = "score.json", "score.html"

SAVED_EVERY = 30.0
"""Seconds between two times that trials are saved while others run."""


def score(options: argparse.Namespace) -> int:
    """Run ``npudiff score`` and return its exit code: 1 if a mutant is lost, or a correct implementation accused."""
    check_output(options.output)
    methods = _methods(options)
    judged = METHODS[0].name if METHODS[0] in methods else SUITE
    if options.expect is not None and judged == SUITE and options.suite is None:
        raise UsageError(f"--expect is about {METHODS[0].name} or a --suite, and neither is run")
    before = set() if options.expect is None else reliably_found(options.expect, judged)
    plan = make_plan(Request(components=tuple(options.components), target=options.target, cann=options.cann))
    jobs = _jobs(plan, options)
    begin_output(options.output)
    console = Console(verbose=False)
    mutants = {_name(job) for job in jobs if job.subject.implementation.wrong is not None}
    told = f"{len(mutants)} mutants, {len(jobs) - len(mutants)} correct implementations"
    console.lines([f"npudiff {VERSION} · target {plan.target.name}, CANN {plan.target.cann} · {told}"])
    kept = _Kept(options, plan, TrialProgress(console.rich))
    if options.json is not None:
        options.json.content = lambda: {"score": document_of(kept.trials, kept.about)}
    unwritten = Unwritten()
    try:
        trials = _run(jobs, methods, options, plan.workers if options.workers is None else options.workers, kept)
    except BaseException as error:  # the trials until then have taken minutes
        kept.ended = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        if kept.trials:
            _tell(kept.trials, kept, console, unwritten)
        unwritten.tell()
        raise
    finally:
        kept.progress.close()
    _tell(trials, kept, console, unwritten)
    if options.record is not None:
        with unwritten.trying(str(options.record), asked=True):
            write_file(options.record, encode(trials, kept.about, brief=True))
    unwritten.tell()
    return unwritten.code(_verdict(console, trials, judged, before & mutants))


class _Kept:
    """The trials that are over: they are shown, and saved now and then, so that whatever ends the run loses few."""

    def __init__(self, options: argparse.Namespace, plan: Plan, progress: TrialProgress) -> None:
        self._options, self._plan, self.progress = options, plan, progress
        self.folder: Path = options.output
        self._started = self._saved = time.perf_counter()
        self.trials: list[Trial] = []
        self.ended = ""

    def __call__(self, trial: Trial) -> None:
        """Take a trial down."""
        self.trials.append(trial)
        self.progress(trial)
        if time.perf_counter() - self._saved > SAVED_EVERY:
            with contextlib.suppress(OSError):  # told at the end, if it is still so
                self.save(self.trials)

    def save(self, trials: Sequence[Trial]) -> None:
        """Write trials as JSON."""
        self._saved = time.perf_counter()
        write_file(self.folder / JSON_FILE, encode(trials, self.about), within=self.folder)

    @property
    def about(self) -> dict[str, object]:
        """What describes the run."""
        suite, target = self._options.suite, self._plan.target
        return {
            "npudiff": VERSION,
            "target": target.name,
            "cann": target.cann,
            "examples": self._options.examples,
            **({} if suite is None else {"suite": suite}),
            "seconds": round(time.perf_counter() - self._started, 1),
            **({"ended": self.ended} if self.ended else {}),
        }


def _tell(trials: Sequence[Trial], kept: _Kept, console: Console, unwritten: Unwritten) -> None:
    """Show trials, and write them."""
    kept.progress.close()
    console.rich.print(table_of(scores(trials)))
    console.lines(list(lines_of(trials)))
    folder = kept.folder
    with unwritten.trying(JSON_FILE, asked=True):
        kept.save(trials)
    with unwritten.trying(PAGE_FILE, asked=True):
        write_file(folder / PAGE_FILE, page(trials, kept.about), within=folder)
    if not unwritten.asked:
        console.lines([f"written: {folder / JSON_FILE}, {folder / PAGE_FILE}"])


def _jobs(plan: Plan, options: argparse.Namespace) -> list[Job]:
    """Return what is tested: the mutants that were named, or all of them and every correct implementation."""
    names: list[str] = options.mutant
    if not names:
        return [*plan.mutants, *(job for job in plan.jobs if options.correct and job.prop is EQUIVALENCE)]
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
    jobs: list[Job], methods: Sequence[Method], options: argparse.Namespace, workers: int, follow: _Kept
) -> list[Trial]:
    """Run all methods."""
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
            shrinks=options.shrink,
            follow=follow,
        )
    return trials


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
