"""Files of a repository that an implementation executes: what it runs in a few cases, not what it might import.

The modules of a serving framework import each other in circles, so that by imports each touches all.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.job import Budget, Job
from npudiff.run.after_fork import begin
from npudiff.run.engine import run_job

CASES = 12
"""Cases that are looked at of each implementation."""

SECONDS = 60.0
"""Time that an implementation may take for them."""


def files_executed(jobs: Sequence[Job], root: Path) -> dict[tuple[str, str], frozenset[Path]]:
    """Return the files below a folder that each implementation executes, by its names.

    Cases run in a process of their own. One that dies, or takes too long, has executed what it had until then.

    Parameters
    ----------
    jobs : sequence of Job
        Those of equivalence are looked at.
    root : pathlib.Path
        Folder of the repository.
    """
    wanted = [job for job in jobs if job.prop is EQUIVALENCE]
    context = multiprocessing.get_context("fork")
    found = {}
    for job in wanted:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_watch, args=(job, root, theirs), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
            process.start()
        theirs.close()
        found[job.subject.names] = frozenset(_received(ours))
        process.kill()
        process.join()
    return found


def _received(connection: Connection) -> set[Path]:
    """Files that a process names, until it ends or its time is over."""
    files: set[Path] = set()
    with connection:
        while connection.poll(SECONDS):
            try:
                message = json.loads(connection.recv_bytes())
            except EOFError:
                break
            files.update(map(Path, message))
    return files


def _watch(job: Job, root: Path, connection: Connection) -> None:
    """Run cases, and name each file below the root that is executed, as soon as it is."""
    begin()
    seen: set[str] = set()
    below = f"{root}/"

    def called(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        name = frame.f_code.co_filename
        if name not in seen:
            seen.add(name)
            if name.startswith(below):
                connection.send_bytes(json.dumps([name]).encode())

    sys.setprofile(called)
    try:
        for seed in range(CASES):
            run_job(job, replace(Budget(examples=1, shrink=False), seed=seed))
    finally:
        sys.setprofile(None)
