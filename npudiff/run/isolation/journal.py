"""The journal of a run: each case is recorded before it runs, so that a run that was killed can be told from its file.

The file has a line of JSON per event. The process that writes it holds a lock on it; a journal without a lock was left
behind by a process that was killed. Others may write to the folder: nothing that is read is trusted, and only plain
files are opened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npudiff.files.writing import new_file

SUFFIX = ".journal"
MOST_JOURNALS = 1_000
"""Journals of a folder that are read; there are as many as runs were killed since the last one that ended."""

MOST_OF_A_LINE = 2**20
"""Bytes of an entry that is read."""

MOST_BYTES = 2**22
"""A longer journal is cut to its newest entries."""

PASSED = ("holds", "not applicable")
"""Verdicts that need no report."""

MOST_READ = 2 * MOST_BYTES
KEPT = 64
"""Newest entries that a journal is cut to."""


@dataclass(frozen=True)
class LeftBehind:
    """A case in the journal of a run that was killed."""

    job: str
    """``component.implementation.property``."""
    case: str
    """The case, as JSON."""
    verdict: str = ""
    """Empty for the case that was being run; else what was seen, of one that nobody reported."""


class Journal:
    """The journal of one process. A forked process shares it, and its lock.

    Parameters
    ----------
    folder : pathlib.Path or None
        Where journals are; it is made if it is not there. None for one that nobody finds afterwards, as is one that
        cannot be written there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / f"{os.getpid()}-{time.time_ns()}{SUFFIX}"
        self._memory = _unnamed()  # which is read by this process, and is not full where a disk is
        self._file = None if self._path is None else _locked(self._path)
        self._next = 0
        self._held = b""
        self._torn = False
        self._recent: deque[bytes] = deque(maxlen=KEPT)

    def begin(self, job: str, case: str) -> int:
        """Write down a case that is run next; return its number."""
        self._next += 1
        self._write({"n": self._next, "job": job, "case": case, "at": round(time.time(), 3)})
        return self._next

    def end(self, number: int, verdict: str) -> None:
        """Write down what was seen of a case: ``holds``, or another word.

        That one holds is written together with the next one: if it never is, the case is run once more for nothing.
        """
        entry = {"n": number, "verdict": verdict}
        if verdict in PASSED:
            self._held = _line(entry)
        else:
            self._write(entry)

    def settle(self) -> None:
        """Record that everything before was reported."""
        self._write({"reported": True})

    def forget(self) -> None:
        """Remove all entries: they were reported, and their writer is gone."""
        for file in self._files:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)

    def begun(self) -> list[tuple[str, str]]:
        """Return the jobs and cases that were begun, in their order; also what another process has written."""
        size = os.fstat(self._memory).st_size
        text = os.pread(self._memory, MOST_READ, max(0, size - MOST_READ))
        told = [(entry.get("job"), entry.get("case")) for entry in map(_entry, text.splitlines())]
        return [(job, case) for job, case in told if isinstance(job, str) and isinstance(case, str)]

    def close(self, *, keep: bool) -> Path | None:
        """End the journal of a run that came to its end; return it if it is kept, since something is to be reported."""
        path = self._path if self._file is not None else None
        if keep:
            self._append(self._held)
        elif path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for file in self._files:
            os.close(file)
        return path if keep else None

    @property
    def _files(self) -> list[int]:
        return [self._memory] if self._file is None else [self._memory, self._file]

    def _write(self, entry: dict[str, Any]) -> None:
        line = self._held + _line(entry)
        self._held = b""
        self._recent.append(line)
        self._append(line)
        for file in self._files:
            if os.lseek(file, 0, os.SEEK_CUR) > MOST_BYTES:
                self._shorten(file)

    def _append(self, line: bytes) -> None:
        """Write an entry into the kernel, which outlives the process; not onto the disk, which takes longer."""
        os.write(self._memory, line)
        if self._file is not None:
            whole = b"\n" * self._torn + line
            self._torn = True
            with contextlib.suppress(OSError):  # a full disk; whoever reads it skips what is torn
                self._torn = os.write(self._file, whole) < len(whole)

    def _shorten(self, file: int) -> None:
        """Keep the newest entries only.

        Between writing them at the beginning and cutting off the rest they are still at the end as well, so that what
        is read says the same whenever the process is killed.
        """
        newest = b"".join(self._recent)
        with contextlib.suppress(OSError):  # as above
            os.pwrite(file, newest, 0)
        os.ftruncate(file, len(newest))
        os.lseek(file, 0, os.SEEK_END)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _unnamed() -> int:
    return os.memfd_create("npudiff-journal", os.MFD_CLOEXEC)


def _locked(path: Path) -> int | None:
    """Return a new file that this process has locked; None where there can be none."""
    import fcntl  # noqa: PLC0415 - not on every system; runs that isolate nothing have no journal

    try:
        with new_file(path, within=path.parent) as made:
            file = os.dup(made.fileno())
    except OSError:
        return None
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def left_behind(folder: Path) -> list[LeftBehind]:
    """Return the cases of runs that were killed, and remove their journals."""
    found: list[LeftBehind] = []
    if importlib.util.find_spec("fcntl") is None or not folder.is_dir() or folder.is_symlink():
        return found
    journals = (path for path in folder.iterdir() if path.suffix == SUFFIX)
    for path in sorted(itertools.islice(journals, MOST_JOURNALS)):
        with contextlib.suppress(OSError), _abandoned(path) as lines:
            found.extend(_told(lines))
            path.unlink()
    return found


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[list[bytes]]:
    """Give the newest lines of a journal that no process writes; raises ``OSError`` for everything else."""
    import fcntl  # noqa: PLC0415 - not on every system

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no plain file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(max(0, status.st_size - MOST_READ))
        yield file.read(MOST_READ).splitlines()


def _told(lines: list[bytes]) -> list[LeftBehind]:
    """Return the case in flight, and the last cases that failed and were not reported."""
    begun: OrderedDict[int, tuple[str, str]] = OrderedDict()
    failed: list[LeftBehind] = []
    for line in lines:
        entry = _entry(line)
        if "reported" in entry:
            begun.clear()
            failed.clear()
        number, job, case, verdict = (entry.get(name) for name in ("n", "job", "case", "verdict"))
        if isinstance(number, int) and isinstance(job, str) and isinstance(case, str):
            begun[number] = (job, case)
        elif isinstance(number, int) and isinstance(verdict, str) and number in begun:
            ended = begun.pop(number)
            if verdict not in PASSED:
                failed.append(LeftBehind(*ended, verdict))
    return [*failed[-KEPT:], *(LeftBehind(*one) for one in list(begun.values())[-1:])]


def _entry(line: bytes) -> dict[str, Any]:
    if len(line) > MOST_OF_A_LINE:
        return {}
    try:
        entry = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
