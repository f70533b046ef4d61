"""Somebody's own tests, run with each mutant in place of the implementation that it was made from."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess  # a command that the user gives, without a shell
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from npudiff.errors import UsageError
from npudiff.files.writing import file_name, make_folder, new_file, remove_file
from npudiff.model.implementation import Implementation
from npudiff.run.on_import import hooked
from npudiff.score.substitute import HOOKS, Substitution
from npudiff.score.trials import Trial

SUITE = "suite"
"""Name of the method in tables."""

PATIENCE = 10.0
"""Times as long as it takes without a mutant: after that a command is ended, and the mutant counts as found."""

_LEAST = 30.0  # seconds that each run has, however short the first was
_TAIL = 15  # lines of output that are shown when it fails by itself


@dataclass(frozen=True)
class _Run:
    code: int | None  # None if it was ended
    seconds: float


def run_suite(
    command: str,
    mutants: Sequence[Implementation],
    folder: Path,
    *,
    workers: int,
    follow: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Run a command without any mutant, then with each.

    Parameters
    ----------
    command : str
        As in a shell, but run without one: ``pytest -x tests/attention``.
    mutants : sequence of Implementation
        Those that are put in place; each has to say what it was made from.
    folder : pathlib.Path
        Gets the output of each run, in a file of the mutant's name.
    workers : int
        Commands beside each other.
    follow : callable
        Called with each trial that is over.

    Returns
    -------
    list of Trial
        One per mutant, in their order. A mutant is found if the command fails, or takes much longer. Where nothing
        calls what it was made from, the command is not run, and ``prop`` says so.

    Raises
    ------
    UsageError
        If the command fails without a mutant, cannot be run, or calls no implementation.
    """
    words = shlex.split(command)
    make_folder(folder, within=folder)
    with tempfile.TemporaryDirectory(prefix="npudiff-suite-") as scratch:
        called, patience = _alone(words, folder, Path(scratch))

        def trial(mutant: Implementation) -> Trial:
            name = f"{mutant.component}.{mutant.name}"
            original = f"{mutant.component}.{mutant.mutant_of}"
            if original not in called:
                return Trial(name, SUITE, 0, found=False, prop=f"{original} is not called")
            placed = Substitution(original, name, stateful=mutant.factory is not None)
            run = _run(words, placed, folder / f"{file_name(name)}.txt", Path(scratch) / file_name(name), patience)
            how = "" if run.code == 0 else "took too long" if run.code is None else f"exit code {run.code}"
            return Trial(name, SUITE, 0, found=run.code != 0, prop=how, seconds=run.seconds)

        pool = ThreadPoolExecutor(max(1, workers))
        trials = []
        try:
            for done in pool.map(trial, mutants):
                follow(done)
                trials.append(done)
        finally:  # after Ctrl-C nothing that waits is begun
            pool.shutdown(cancel_futures=True)
        return trials


def _alone(words: Sequence[str], folder: Path, scratch: Path) -> tuple[set[str], float]:
    """Run the command without a mutant; return what it calls, and how long one may take."""
    record, output = scratch / "calls", folder / "without a mutant.txt"
    run = _run(words, Substitution(record=str(record)), output, scratch / "alone", None)
    if run.code != 0:
        tail = "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])
        raise UsageError(f"--suite: {shlex.join(words)} fails without a mutant (exit code {run.code}):\n{tail}")
    called = set(record.read_text(encoding="utf-8").split()) if record.exists() else set[str]()
    if not called:
        raise UsageError(
            f"--suite: {shlex.join(words)} calls no implementation of npudiff, so no mutant can be seen; "
            "if it does, it must leave PYTHONPATH as npudiff sets it"
        )
    return called, max(_LEAST, PATIENCE * run.seconds)


def _run(words: Sequence[str], placed: Substitution, output: Path, storage: Path, patience: float | None) -> _Run:
    """Run the command in a process group of its own, which is ended as a whole."""
    # What one run finds is no help for the next: Hypothesis's examples are kept apart.
    given = {**os.environ, **placed.environment(), "HYPOTHESIS_STORAGE_DIRECTORY": str(storage)}
    started = time.perf_counter()
    remove_file(output, within=output.parent)
    with new_file(output, within=output.parent) as written:
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                words,
                env=hooked(given, HOOKS),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"--suite: {shlex.join(words)} cannot be run: {error}") from None
        try:
            code: int | None = process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it started and did not wait for
            process.wait()
    return _Run(code, time.perf_counter() - started)
