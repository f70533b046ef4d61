"""What an implementation leaves running when its call has returned, and may still end the process."""

from __future__ import annotations

import os
import time
from pathlib import Path

GRACE = 0.5
"""Seconds that new threads get to end, or to show what they do."""


class Lingering:
    """Waits for threads that a process has begun and not ended.

    A thread that ends the process a little later would do so in the case of another implementation. Threads that stay,
    as those of a pool, are waited for once.

    Parameters
    ----------
    pid : int
        The process.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._tasks = Path(f"/proc/{os.getpid() if pid is None else pid}/task")
        self._most = self._count()

    def settle(self) -> None:
        """Wait, for a moment, if there are more threads than there ever were."""
        until = time.monotonic() + GRACE
        while self._count() > self._most and time.monotonic() < until:
            time.sleep(0.005)
        self._most = max(self._most, self._count())

    def _count(self) -> int:
        try:
            return len(os.listdir(self._tasks))  # noqa: PTH208 - it is asked after each case
        except OSError:  # the process is gone, or this is no Linux
            return 0
