"""How far a score has come: a line of its own on a terminal, and one now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time

from rich.console import Console as RichConsole
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from npudiff.score.trials import Trial
from npudiff.text import counted, printable

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class TrialProgress:
    """Shows the trials that are over; whoever has it closes it.

    Parameters
    ----------
    console : rich.console.Console
        Where the line goes.
    """

    def __init__(self, console: RichConsole) -> None:
        columns = (TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._line = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
        )
        self._task = self._line.add_task("the first trials", total=None)
        self._said = time.monotonic()
        self._trials = self._found = 0

    def __call__(self, trial: Trial) -> None:
        """Show a trial."""
        self._trials, self._found = self._trials + 1, self._found + trial.found
        said = f"seed {trial.seed}: {counted(self._trials, 'trial')} so far, {self._found} with a finding"
        if not self._line.disable:
            self._line.start()
            self._line.update(self._task, description=printable(f"{said} · {trial.method}: {trial.mutant}"))
            self._line.refresh()
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            with contextlib.suppress(OSError):  # nobody listens
                print(said, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the line away."""
        self._line.stop()
