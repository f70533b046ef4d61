"""Files of a repository that an implementation executes: what it runs in a few cases, not what it might import.

The modules of a serving framework import each other in circles, so that by imports each touches all.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.job import Budget, Job
from npudiff.run.after_fork import begin
from npudiff.run.engine import run_job
from npudiff.run.plan import default_workers

CASES, QUIET = 12, 4
"""Cases that are looked at of each implementation, and how many without another file end that."""

SECONDS = 60.0
"""Time that an implementation may take for them."""


def files_executed(
    jobs: Sequence[Job], root: Path, enough: frozenset[Path] = frozenset()
) -> dict[tuple[str, str], frozenset[Path]]:
    """Return the files below a folder that each implementation executes, by its names.

    Cases run in a process of their own. One that dies, or takes too long, has executed what it had until then.

    Parameters
    ----------
    jobs : sequence of Job
        Those of equivalence are looked at.
    root : pathlib.Path
        Folder of the repository.
    enough : frozenset of pathlib.Path
        An implementation that has executed all of these is not looked at any longer.
    """
    wanted = [job for job in jobs if job.prop is EQUIVALENCE]
    running: dict[Connection, _Watched] = {}
    found: dict[tuple[str, str], frozenset[Path]] = {}
    while wanted or running:
        while wanted and len(running) < default_workers(wanted[0].subject.target):
            job = wanted.pop(0)
            connection, process = _started(job, root)
            running[connection] = _Watched(job.subject.names, process, time.monotonic() + SECONDS)
        ready = wait(list(running), max(0.0, min(one.until for one in running.values()) - time.monotonic()))
        for connection, one in [*running.items()]:
            over = time.monotonic() > one.until
            if connection in ready:
                over = not one.take(connection) or (bool(enough) and enough <= one.files)
            if over:
                found[one.names] = frozenset(one.files)
                one.process.kill()
                one.process.join()
                del running[connection]
                connection.close()
    return found


@dataclass
class _Watched:
    """A process that names the files which it executes."""

    names: tuple[str, str]
    process: BaseProcess
    until: float
    files: set[Path] = field(default_factory=set)

    def take(self, connection: Connection) -> bool:
        """Take what it has named; False if it has ended."""
        try:
            self.files.update(map(Path, json.loads(connection.recv_bytes())))
        except (EOFError, OSError):
            return False
        self.until = time.monotonic() + SECONDS
        return True


def _started(job: Job, root: Path) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_watch, args=(job, root, theirs), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
        process.start()
    theirs.close()
    return ours, process


def _watch(job: Job, root: Path, connection: Connection) -> None:
    """Run cases, and name each file below the root that is executed, as soon as it is."""
    begin()
    seen: set[str] = set()
    told: set[str] = set()
    below = f"{root}/"

    def called(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        name = frame.f_code.co_filename
        if name not in seen:
            seen.add(name)
            if name.startswith(below):
                told.add(name)
                connection.send_bytes(json.dumps([name]).encode())

    sys.setprofile(called)
    try:
        quiet = 0
        for seed in range(CASES):
            before = len(told)
            outcome = run_job(job, replace(Budget(examples=1, shrink=False), seed=seed))
            quiet = 0 if len(told) > before else quiet + bool(outcome.cases)  # what was not run says nothing
            if quiet == QUIET:
                return
    finally:
        sys.setprofile(None)
