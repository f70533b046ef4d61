"""How far a run has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from npudiff.model.job import Job
from npudiff.run.events import CasesJudged, Event, JobEnded, JobStarted, RunEnded
from npudiff.text import counted, printable

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

DRAWN_EVERY = 0.1
"""Seconds between two drawings of the bar."""


class RunProgress:
    """Shows how far a run has come: a listener of its events.

    The bar has no thread of its own, and so no lock that a forked process could inherit while it is held.

    Parameters
    ----------
    console : rich.console.Console
        Where the bar goes.
    jobs : int or None
        Jobs of the run, of which the bar shows how many have ended.
    seconds : float or None
        Seconds of the run, of which the bar shows how many are over; in place of jobs.
    """

    def __init__(self, console: RichConsole, *, jobs: int | None = None, seconds: float | None = None) -> None:
        self._bar = Progress(
            TextColumn("{task.description:48}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._jobs, self._seconds = jobs, seconds
        self._task = self._bar.add_task("starting", total=seconds if jobs is None else jobs, said="")
        self._started = self._said = time.monotonic()
        self._drawn = 0.0
        self._ended = self._cases = 0
        self._running: dict[str, int] = {}
        self._stage = ""

    def expect(self, jobs: int) -> None:
        """Say that there are more jobs than were known."""
        if self._jobs is not None:
            self._jobs += jobs
            self._bar.update(self._task, total=self._jobs)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, RunEnded):
            self._bar.stop()
            return
        if isinstance(event, JobStarted):
            self._bar.start()
            self._running[event.job.name] = 0
            job = event.job
        elif isinstance(event, CasesJudged):
            self._running[event.job.name] = event.cases
            job = event.job
        else:
            job = event.outcome.job
            self._running.pop(job.name, None)
            self._ended += 1
            self._cases += event.outcome.cases
        self._show(job, event.stage, at_once=isinstance(event, JobEnded))

    def _show(self, job: Job, stage: str, *, at_once: bool) -> None:
        now, cases = time.monotonic(), self._cases + sum(self._running.values())
        if self._bar.disable:
            self._say(now, stage, cases)
        elif at_once or now - self._drawn > DRAWN_EVERY:
            self._drawn = now
            name = f"{stage}: {job.name}" if stage else f"{job.subject.implementation.name} {job.prop.name}"
            what = printable(name)[:48]
            jobs = "" if self._jobs is None else f"{self._ended}/{self._jobs} jobs · "
            completed = now - self._started if self._jobs is None else self._ended
            self._bar.update(self._task, completed=completed, description=what, said=f"{jobs}{cases:,} cases")
            self._bar.refresh()

    def _say(self, now: float, stage: str, cases: int) -> None:
        if stage == self._stage and now - self._said < EVERY:
            return
        self._said, self._stage = now, stage
        jobs = counted(self._ended, "job") if self._jobs is None else f"{self._ended} of {counted(self._jobs, 'job')}"
        said = f"{jobs} and {counted(cases, 'case')} so far"
        with contextlib.suppress(OSError):  # nobody listens
            print(f"{stage}: {said}" if stage else said, file=sys.stderr, flush=True)
