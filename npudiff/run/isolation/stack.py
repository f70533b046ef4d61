"""Where a process is when it dies, or when it has not answered in time: what faulthandler writes of it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time

from npudiff.model.frames import frames_of_stack, innermost_of_stack

MOST_BYTES = 2**16
"""Bytes of a stack that are read; the innermost call comes first."""

ASKS = signal.SIGUSR1
"""Whoever has forked a process sends it: there is no other process of this number then."""

_PATIENCE = 0.3
"""Seconds that a process gets to write: one that is stopped, or that no signal reaches, writes nothing."""

_QUIET = 0.01
"""Seconds without another byte, after which it has written all."""


class Stack:
    """Memory that a process shares with its parent, for its stack.

    It is made by the parent; the process says ``write_here(stack.file)`` when it begins.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("npudiff-stack", os.MFD_CLOEXEC)

    def ask(self, pid: int) -> None:
        """Have a child that runs, and is about to be killed, write where it is; wait until it has."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, ASKS)
        until, size = time.monotonic() + _PATIENCE, 0
        while time.monotonic() < until:
            time.sleep(_QUIET)
            before, size = size, os.fstat(self.file).st_size
            if size and size == before:
                return

    @property
    def innermost(self) -> str:
        """The innermost call, of whatever code: function, file and line; empty if nothing was written."""
        return innermost_of_stack(self._text)

    @property
    def frames(self) -> tuple[str, ...]:
        """The calls of the implementation's own code, as of a traceback."""
        return frames_of_stack(self._text)

    @property
    def _text(self) -> str:
        return os.pread(self.file, MOST_BYTES, 0).decode("utf-8", errors="replace")

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self.file)


def write_here(file: int) -> None:
    """Have this process write its stack into a file, when it dies of a signal and when its parent asks."""
    faulthandler.enable(file, all_threads=False)
    faulthandler.register(ASKS, file, all_threads=False)
