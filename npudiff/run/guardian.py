"""The guardian of a command: the process that a shell waits for, which runs nothing that somebody else wrote.

A kernel's file may leave the process when it is imported, a thread of it later, and a crash of torch or the system's
lack of memory may end it at any time, with exit code 0 as well. So a command runs in a child, and only what the child
has said before it ended counts as its exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from npudiff.errors import ExitCode
from npudiff.text import printable

_CODE = struct.Struct("i")
_NOT_SAID = -1
_MOST_TEXT = 1000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of <sys/prctl.h>
_FORWARDED = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)

_said: mmap.mmap | None = None
"""Memory that the guardian reads: exit code, and what the child is about to do."""


def begins(what: str) -> None:
    """Say what this process is about to do, which is told if it does not come back."""
    if _said is not None:
        text = what.encode()[:_MOST_TEXT]
        _said[_CODE.size : _CODE.size + _MOST_TEXT + 1] = text.ljust(_MOST_TEXT + 1, b"\0")


def guarded(command: Callable[[], int], told: Callable[[End], None] = lambda _: None) -> int:
    """Run a command in a child and return its exit code; ``INTERNAL`` if it ends without having said one.

    Where a process cannot be forked the command runs in this one.

    Parameters
    ----------
    command : callable
        Runs the command.
    told : callable
        Called in the guardian with an end that is none, to tell it wherever else it has to be told.
    """
    ended = end_of_child() if hasattr(os, "fork") else None
    if ended is not None:
        if ended.proper:
            return ended.status
        print(f"npudiff: {ended}", file=sys.stderr)
        told(ended)
        return ExitCode.INTERNAL
    try:
        code = command()
    except SystemExit as end:  # of the parser of arguments: what runs kernels catches it
        says(end.code if isinstance(end.code, int) else ExitCode.USAGE)
        raise
    says(code)
    return code


@dataclass(frozen=True)
class End:
    """How a child has ended."""

    status: int
    """Exit code, or a signal as a negative number."""
    said: int
    """The exit code that it said before."""
    doing: str
    """What it had begun."""

    @property
    def proper(self) -> bool:
        """Whether it had come to its end."""
        return self.said == self.status

    @property
    def mute(self) -> bool:
        """Whether it had said no exit code at all."""
        return self.said == _NOT_SAID

    def __str__(self) -> str:
        """Return why nothing counts as judged."""
        named = -self.status in set(signal.Signals)  # most real-time signals have no name
        name = signal.Signals(-self.status).name if named else -self.status
        how = f"signal {name}" if self.status < 0 else f"exit code {self.status}"
        where = f" in {printable(self.doing)}" if self.doing else ""
        return f"the run ended before its last verdict, with {how}{where}: nothing that it did not tell was judged"


def end_of_child() -> End | None:
    """Fork; return None in the child, and in its guardian how the child has ended, when it has."""
    global _said  # noqa: PLW0603 - of the process
    _said = mmap.mmap(-1, mmap.PAGESIZE)
    says(_NOT_SAID)
    guardian, child = os.getpid(), os.fork()
    if not child:
        _end_with(guardian)
        return None
    _forward_signals(child)
    adopt_orphans()
    _, status = os.waitpid(child, 0)  # a signal that is forwarded does not end the wait: PEP 475
    end_children()
    (code,) = _CODE.unpack_from(_said, 0)
    doing = _said[_CODE.size :].partition(b"\0")[0].decode(errors="replace")
    return End(os.waitstatus_to_exitcode(status), code, doing)


def says(code: int) -> None:
    """Say with which exit code this process is about to end."""
    if _said is not None:
        _CODE.pack_into(_said, 0, code)


def adopt_orphans() -> None:
    """Become the parent of what processes below this one start and leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children(but: Collection[int] = ()) -> None:
    """End all children of this process, and theirs when they become its own; on Linux."""
    while children := [child for child in _children() if child not in but]:
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    own, found = os.getpid(), list[int]()
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - names are enough
        with contextlib.suppress(OSError):  # it is gone
            if name.isdigit():
                _, parent, *_ = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                found += [int(name)] if int(parent) == own else []
    return found


def _end_with(guardian: int) -> None:
    """Have this process interrupted when its guardian is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != guardian:
            os._exit(ExitCode.INTERRUPTED)


def _forward_signals(child: int) -> None:
    """Leave Ctrl-C to the child, which has it from the terminal as well, and pass on what is sent to this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def forward(number: int, frame: object) -> None:
        del frame
        os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
