"""The journal of a run: each case is written down before it is run, so that a run that is killed has not forgotten it.

A file per process, a line of JSON per event. Its process holds a lock on it; a file without one was left behind. What
is read comes from a folder that others may write to: nothing in it is trusted, and only plain files are opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

JOURNALS = "journal"
"""Folder of the journals below where findings go."""

SUFFIX = ".journal"
MOST_BYTES = 2**22
"""A journal is written anew, with the newest entries only, when it has become longer."""

PASSED = ("holds", "not applicable")
"""Verdicts that nobody has to hear of."""

MOST_READ = 2 * MOST_BYTES
KEPT = 64
"""Entries that are kept then."""


@dataclass(frozen=True)
class LeftBehind:
    """What a run that was killed says of a case.

    Attributes
    ----------
    job : str
        ``component.implementation.property``.
    case : str
        The case, as JSON.
    verdict : str
        Empty for the case that was being run; else what was seen, of one that nobody reported.
    """

    job: str
    case: str
    verdict: str = ""


class Journal:
    """What one process runs.

    Parameters
    ----------
    folder : pathlib.Path
        Where journals are; it is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{os.getpid()}-{time.time_ns()}{SUFFIX}"
        self._file = _locked(self._path)
        self._written = 0
        self._next = 0
        self._held = ""
        self._recent: deque[str] = deque(maxlen=KEPT)

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

    def close(self, *, keep: bool) -> Path | None:
        """End the journal of a run that came to its end; return it if it is kept, since something is to be reported."""
        if keep:
            self._file.write(self._held)
        else:
            self._path.unlink(missing_ok=True)
        self._file.close()
        return self._path if keep else None

    def _write(self, entry: dict[str, Any]) -> None:
        line = self._held + _line(entry)
        self._held = ""
        self._recent.append(line)
        self._file.write(line)
        self._file.flush()  # into the kernel, which outlives the process; not onto the disk, which would take longer
        self._written += len(line)
        if self._written > MOST_BYTES:
            self._shorten()

    def _shorten(self) -> None:
        shorter = _locked(self._path.with_suffix(".partial"))
        shorter.writelines(self._recent)
        shorter.flush()
        self._path.with_suffix(".partial").replace(self._path)
        self._file.close()
        self._file, self._written = shorter, 0


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":")) + "\n"


def _locked(path: Path) -> IO[str]:
    file = path.open("w", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def left_behind(folder: Path) -> list[LeftBehind]:
    """Return what runs that were killed were doing, and forget it."""
    found: list[LeftBehind] = []
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.suffix in (SUFFIX, ".partial"):
            with contextlib.suppress(OSError), _abandoned(path) as lines:
                found.extend(_told(lines))
                path.unlink()
    return found


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[list[str]]:
    """Give the newest lines of a journal that no process writes; raises ``OSError`` for everything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no plain file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(max(0, status.st_size - MOST_READ))
        yield file.read(MOST_READ).decode("utf-8", errors="replace").splitlines()


def _told(lines: list[str]) -> list[LeftBehind]:
    """Return the case in flight, and cases that failed and were not reported."""
    begun: OrderedDict[int, tuple[str, str]] = OrderedDict()
    failed: list[LeftBehind] = []
    for line in lines:
        entry = _entry(line)
        number, job, case, verdict = (entry.get(name) for name in ("n", "job", "case", "verdict"))
        if isinstance(number, int) and isinstance(job, str) and isinstance(case, str):
            begun[number] = (job, case)
        elif isinstance(number, int) and isinstance(verdict, str) and number in begun:
            ended = begun.pop(number)
            if verdict not in PASSED:
                failed.append(LeftBehind(*ended, verdict))
    return [*failed, *(LeftBehind(*one) for one in list(begun.values())[-1:])]


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
