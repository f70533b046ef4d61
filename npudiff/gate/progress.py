"""How far a gate has come: a bar of its time on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from npudiff.model.outcome import Outcome
from npudiff.text import counted

EVERY = 30.0
"""Seconds between two lines of one part."""


class GateProgress:
    """Shows what a gate does; a context manager.

    Parameters
    ----------
    console : rich.console.Console
        Where the bar goes.
    budget : float
        Seconds of the gate.
    """

    def __init__(self, console: RichConsole, budget: float) -> None:
        self._bar = Progress(
            TextColumn("{task.description:48}"),
            BarColumn(),
            TextColumn("{task.fields[cases]} cases"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            auto_refresh=False,  # no thread, and no lock that a forked process could inherit while it is held
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("starting", total=budget, cases=0)
        self._started = self._said = time.monotonic()
        self._cases = self._jobs = 0
        self._part = ""

    def __enter__(self) -> GateProgress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def follow(self, part: str, outcome: Outcome) -> None:
        """Count a job that has ended."""
        self._cases += outcome.cases
        self._jobs += 1
        now = time.monotonic()
        self._bar.update(
            self._task,
            completed=now - self._started,
            cases=self._cases,
            description=f"{part}: {outcome.job.name}"[:48],
        )
        self._bar.refresh()
        if self._bar.disable and (part != self._part or now - self._said > EVERY):
            said = f"{part}: {counted(self._jobs, 'job')} and {counted(self._cases, 'case')} so far"
            print(said, file=sys.stderr, flush=True)
            self._said = now
        self._part = part
