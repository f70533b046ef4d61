"""The guardian of a command: the process that a shell waits for, which runs nothing that somebody else wrote.

A kernel's file may leave the process when it is imported, a thread of it later, and a crash of torch or the system's
lack of memory may end it at any time, with exit code 0 as well. So a command runs in a child, and only what the child
has said before it ended counts as its exit code.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable

from npudiff.errors import ExitCode
from npudiff.text import printable

_CODE = struct.Struct("i")
_NOT_SAID = -1
_MOST_TEXT = 1000
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: the kernel signals a process whose parent is gone
_FORWARDED = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)

_said: mmap.mmap | None = None
"""Memory that the guardian reads: exit code, and what the child is about to do."""


def begins(what: str) -> None:
    """Say what this process is about to do, which is told if it does not come back."""
    if _said is not None:
        text = what.encode()[:_MOST_TEXT]
        _said[_CODE.size : _CODE.size + _MOST_TEXT + 1] = text.ljust(_MOST_TEXT + 1, b"\0")


def guarded(command: Callable[[], int]) -> int:
    """Run a command in a child and return its exit code; ``INTERNAL`` if it ends without having said one.

    Where a process cannot be forked the command runs in this one.
    """
    global _said  # noqa: PLW0603 - of the process
    if not hasattr(os, "fork"):
        return command()
    _said = mmap.mmap(-1, mmap.PAGESIZE)
    _CODE.pack_into(_said, 0, _NOT_SAID)
    guardian, child = os.getpid(), os.fork()
    if not child:
        _end_with(guardian)
        code = command()
        _CODE.pack_into(_said, 0, code)
        return code
    _forward_signals(child)
    status = os.waitstatus_to_exitcode(_waited(child))
    (code,) = _CODE.unpack_from(_said, 0)
    if code == status:
        return int(code)
    doing = _said[_CODE.size :].partition(b"\0")[0].decode(errors="replace")
    print(f"npudiff: {_ended(status, doing)}", file=sys.stderr)
    return ExitCode.INTERNAL


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


def _waited(child: int) -> int:
    """Wait for the child and return its status."""
    return os.waitpid(child, 0)[1]  # a signal that is forwarded does not end the wait: PEP 475


def _ended(status: int, doing: str) -> str:
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
    where = f" in {printable(doing)}" if doing else ""
    return f"the run ended before its last verdict, with {how}{where}: nothing that it did not tell was judged"
