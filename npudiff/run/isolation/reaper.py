"""The reaper: a process that kills the process groups which its parent leaves behind when it dies.

A worker that hangs cannot notice that its parent was killed, and a signal at the parent's death reaches the worker
alone, not what the implementation has started.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import struct
from typing import NoReturn

_ENTRY = struct.Struct("<?q")
_FILES = 2**20


class Reaper:
    """Kills the process groups of one process when that process is gone.

    Attributes
    ----------
    pid : int
        Its process.
    """

    def __init__(self) -> None:
        read, self._write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _watch(read)
        os.close(read)

    def watch(self, group: int, *, over: bool = True) -> None:
        """Add a process group, or (``over=False``) forget it."""
        os.write(self._write, _ENTRY.pack(over, group))

    def leave(self) -> None:
        """Close the pipe in a forked process, whose copy would keep the reaper waiting."""
        os.close(self._write)


def reaper() -> Reaper:
    """Return the reaper of this process."""
    return _reaper_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _reaper_of(pid: int) -> Reaper:
    del pid  # what it is remembered by: a forked process needs one of its own
    return Reaper()


def _watch(line: int) -> NoReturn:
    """The life of the reaper: it keeps a list of groups until the pipe closes, then kills them."""
    try:
        os.dup2(line, 0)
        os.closerange(1, _FILES)  # it must hold nothing open of which others wait for the end
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        groups: set[int] = set()
        while entry := os.read(0, _ENTRY.size):  # less than a page is written at once, and arrives whole
            over, group = _ENTRY.unpack(entry)
            (groups.add if over else groups.discard)(group)
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)
