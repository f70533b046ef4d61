"""Files from elsewhere are read here: plain ones, up to a size, and without following a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from npudiff.errors import UsageError


def read_plain_file(path: Path, limit: int) -> bytes:
    """Read a regular file that is not a link and not larger than ``limit``.

    Raises
    ------
    UsageError
        If it is not there, is anything else, or is larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):  # a name with a zero byte is a ValueError
        raise UsageError(f"{path.parent}: {path.name} is missing, or not a plain file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path.parent}: {path.name} is missing, or not a plain file")
        if status.st_size > limit:
            raise UsageError(f"{path.parent}: {path.name} has {status.st_size} bytes, at most {limit} are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


MOST_EXAMPLES, MOST_OF_A_KEY = 20_000, 1_000
MOST_BYTES, MOST_IN_ALL = 2**17, 2**26
"""Files of remembered examples, in all and of one key, and bytes of each and in all, with more of which none is read:
Hypothesis reads all examples of a key at once, and tries each."""

_DEPTH = 3
"""Job, key, example."""


def reason_against_examples(folder: Path, depth: int = _DEPTH) -> str:
    """Return why a folder of remembered examples is not read; empty if it is, or is not there.

    Hypothesis reads, and writes, whatever lies there, through links and into pipes.

    Parameters
    ----------
    folder : pathlib.Path
        The folder of all jobs, or (``depth=2``) of one.
    depth : int
        Levels below it.
    """
    if folder.is_symlink():
        return f"{folder}: a link, which is not followed"
    if not folder.exists():
        return ""
    try:
        return _Examples().reason_against(folder, depth)
    except OSError as error:
        return f"{folder}: cannot be read: {error.strerror}"


class _Examples:
    """Counts what is in a folder of examples."""

    def __init__(self) -> None:
        self._files = self._bytes = 0

    def reason_against(self, folder: Path, depth: int) -> str:
        """Return why a folder is not read."""
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries, 1):
                if number > (MOST_OF_A_KEY if depth == 1 else MOST_EXAMPLES):
                    return f"{folder}: more than {number - 1} entries"
                if entry.is_dir(follow_symlinks=False):
                    deeper = f"{entry.path}: a folder too deep" if depth == 1 else ""
                    found = deeper or self.reason_against(Path(entry.path), depth - 1)
                else:
                    found = self._against_file(entry)
                if found:
                    return found
        return ""

    def _against_file(self, entry: os.DirEntry[str]) -> str:
        size = entry.stat(follow_symlinks=False).st_size
        self._files, self._bytes = self._files + 1, self._bytes + size
        if not entry.is_file(follow_symlinks=False) or size > MOST_BYTES:
            return f"{entry.path}: not a plain file of at most {MOST_BYTES} bytes"
        if self._files > MOST_EXAMPLES:
            return f"{entry.path}: more than {MOST_EXAMPLES} files"
        return f"{entry.path}: more than {MOST_IN_ALL} bytes in all" if self._bytes > MOST_IN_ALL else ""
