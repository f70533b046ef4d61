"""The nursery: a fresh interpreter that forks processes of candidates, and ends them.

It imports torch, the target's operators and the engine's words, and never a reference, a property or a candidate's
file: each fork begins as clean as it is. It answers on a socket of its own: ``new`` for another process, ``end`` for
the end of one, which gets a moment to end by itself unless that has to be ``now``. A process that has ended stays known
by its number until it is asked for, so that no number is mistaken.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any, NoReturn

from npudiff.run.guardian import adopt_orphans, end_children
from npudiff.run.isolation.stack import ASKS, write_here
from npudiff.run.untrusted.contracts import hide_references

MOST_MESSAGE = 2**24
"""Bytes of a message."""

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_ASKED = 0.1
"""Seconds that a process which is asked where it is gets to write it."""

_GRACE = 2.0
"""Seconds that a process whose connection has ended gets to say how it died."""


def main(arguments: Sequence[str]) -> None:
    """Answer on the socket of the first argument until it is told to end by standard input.

    The others are the target, and its CANN profile or nothing. The first line of standard input is the key of the
    socket, as hexadecimal digits.
    """
    address, target, cann = arguments
    key = sys.stdin.buffer.readline().decode().strip()
    hide_references()
    import torch  # noqa: PLC0415 - after references are hidden

    from npudiff.run.discovery import load_target  # noqa: PLC0415
    from npudiff.run.environment import keep_freed_memory  # noqa: PLC0415

    keep_freed_memory()
    torch.set_num_threads(1)
    place = load_target(target, cann or None)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Listener(address, "AF_UNIX", authkey=bytes.fromhex(key)) as listener:
        nursery = _Nursery(place, listener)
        threading.Thread(target=nursery.end_with_input, daemon=True).start()
        print("ready", flush=True)
        while True:
            with contextlib.suppress(OSError, EOFError, ValueError, AuthenticationError):
                nursery.answer(listener.accept())


class _Nursery:
    def __init__(self, target: Any, listener: Listener) -> None:  # noqa: ANN401 - a Target, imported late
        self._target, self._listener = target, listener
        self._children: set[int] = set()

    def answer(self, connection: Connection) -> None:
        """Answer the first message of a connection."""
        question = json.loads(connection.recv_bytes(MOST_MESSAGE))
        with connection:
            if "end" in question:
                grace = 0.0 if question.get("now") else _GRACE
                status = self._ended(question["end"], grace, asks=question.get("asks", False))
                connection.send_bytes(json.dumps({"status": status}).encode())
                return
            child = os.fork()
            if not child:
                self._listener._listener._socket.close()  # type: ignore[attr-defined]
                _live(connection, self._target, question["new"], question.get("memory"))
            self._children.add(child)
            connection.send_bytes(json.dumps({"number": child}).encode())

    def _ended(self, child: int, grace: float = _GRACE, *, asks: bool = False) -> int:
        """End a process and all that it started, and return its status as ``os.wait`` does."""
        if child not in self._children:
            return 0
        self._children.remove(child)
        if asks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, ASKS)
            time.sleep(_ASKED)
        until, done, status = time.monotonic() + grace, 0, 0
        while not done:
            done, status = os.waitpid(child, os.WNOHANG)
            if not done and time.monotonic() >= until:
                break
            if not done:
                time.sleep(0.002)
        for end in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(child, signal.SIGKILL)
        if not done:
            _, status = os.waitpid(child, 0)
        end_children(but=self._children)
        return status

    def end_with_input(self) -> NoReturn:
        """End everything as soon as the judge says so, or is gone."""
        sys.stdin.buffer.read(1)
        for child in tuple(self._children):
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(child, signal.SIGKILL)
            self._ended(child)
        end_children()
        os._exit(0)


def _live(connection: Connection, target: Any, selector: str, memory: int | None) -> NoReturn:  # noqa: ANN401 - as above
    """Be the process of a candidate: import its file, and answer until the other side is gone."""
    try:
        os.setsid()
        if memory is not None:
            _limit_memory(memory)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        files = (recv_handle(connection), recv_handle(connection))
        write_here(recv_handle(connection))
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115 - it lives as long as the process
        os.dup2(sys.stdin.fileno(), 0)
        os.dup2(2, 1)  # nobody reads the nursery's output: who writes much of it would wait for ever
        from npudiff.run.untrusted.candidate import serve  # noqa: PLC0415 - in its own process only

        with target.activate():
            serve(connection, target, selector, files)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _limit_memory(more: int) -> None:
    """Let this process, and what it starts, map this many bytes besides those that it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
