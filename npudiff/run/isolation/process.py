"""A forked worker as its parent sees it: questions with a time limit, and a kill that takes its whole process group."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeVar

from npudiff.errors import DeviceLost
from npudiff.model.faults import Faulted, Kind, died
from npudiff.model.implementation import Target
from npudiff.run import after_fork
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.reaper import Reaper, reaper
from npudiff.run.isolation.stack import Stack, write_here

_GRACE = 2.0
"""Seconds that a process whose connection has ended gets to say how it died."""


Life = Callable[[Connection, SharedTensors], NoReturn]
"""What a forked process does: questions come in by the connection, and tensors of answers go into shared memory."""


class WorkerDefect(Exception):
    """Something other than an implementation raised in a worker; the message is its traceback."""


class WorkerProcess:
    """A forked process that answers questions.

    A fork takes milliseconds, and what it is made from never touches a device: each worker is as new.

    Parameters
    ----------
    life : callable
        What it does.
    """

    def __init__(self, life: Life) -> None:
        self.shared = SharedTensors()
        self._stack = Stack()
        self._connection, theirs = Pipe()
        watching = reaper()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; the child uses none of them
            self._pid = os.fork()
        if not self._pid:
            self._begin(life, theirs, watching)
        watching.watch(self._pid)
        theirs.close()
        self._waiting = select.poll()
        self._waiting.register(self._connection.fileno(), select.POLLIN)

    def _begin(self, life: Life, theirs: Connection, watching: Reaper) -> None:
        """The child's side; whatever happens, it never goes back to what the parent does."""
        try:
            self._connection.close()
            watching.leave()
            write_here(self._stack.file)
            os.setsid()  # a group of its own, with all that the implementation starts
            after_fork.begin()
            life(theirs, self.shared)
        except BaseException:  # noqa: BLE001 - there is nobody else to tell
            traceback.print_exc()
        finally:
            os._exit(70)

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a question.

        Raises
        ------
        Faulted
            If the process dies, or does not answer in time; it is gone then.
        WorkerDefect
            If npudiff itself, or a component, raised.
        """
        self.tell(question)
        self._await(seconds)
        return self.hear()

    def tell(self, question: dict[str, Any]) -> None:
        """Put a question whose answer is heard later; that the process is gone is heard then."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(question).encode())

    def hear(self) -> dict[str, Any]:
        """Return the answer that has come, or comes.

        Raises
        ------
        Faulted, WorkerDefect
            As of ``ask``.
        """
        if self.gone:
            raise Faulted(Kind.DIED, "the process is gone")
        try:
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None
        if answer["verdict"] == "defect":
            raise WorkerDefect(answer["text"])
        return answer

    def _await(self, seconds: float) -> None:
        """Wait for an answer, or for the end of the process."""
        if not self._answers(seconds):
            raise self.hangs(f"no answer within {seconds:g} s")

    def _answers(self, seconds: float) -> bool:
        return bool(self._waiting.poll(max(0.0, seconds) * 1000))

    def hangs(self, text: str) -> Faulted:
        """End a process that does not answer; return what is said of it, and where it was."""
        self._stack.ask(self._pid)
        frames = self._stack.frames
        self.kill()
        return Faulted(Kind.TIMED_OUT, text, frames)

    @property
    def gone(self) -> bool:
        """Whether it has ended, and that was noticed: there is nobody any more to ask, or to end."""
        return not self._pid

    def fileno(self) -> int:
        """Return the file that can be read when an answer, or the end of the process, can be heard."""
        return self._connection.fileno()

    def begin_to_end(self) -> None:
        """End the process without waiting until it is gone; ``kill`` has to follow."""
        if self._pid:
            self._kill_group()

    def kill(self) -> None:
        """End the process and all that it started, and let go of what is shared with it."""
        if self._pid:
            self._kill_group()
            os.waitpid(self._pid, 0)
            self._release()

    def _kill_group(self) -> None:
        assert self._pid  # noqa: S101 - 0 would be this process's own group
        for end in (os.killpg, os.kill):  # before it has a group of its own it is a process of ours
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self._pid, signal.SIGKILL)

    def _death(self) -> Faulted:
        """Wait for a process that is ending, and say how it did, and where it was."""
        until, done, status = time.monotonic() + _GRACE, 0, 0
        while not done and time.monotonic() < until:
            done, status = os.waitpid(self._pid, os.WNOHANG)
            if not done:
                time.sleep(0.002)
        self._kill_group()  # what it started, and itself if it has only closed its connection
        if not done:
            _, status = os.waitpid(self._pid, 0)
        place, frames = self._stack.innermost, self._stack.frames
        self._release()
        return Faulted(Kind.DIED, died(status) + (f", in {place}" if place else ""), frames)

    def _release(self) -> None:
        reaper().watch(self._pid, over=False)
        self._pid = 0
        self._connection.close()
        self._stack.close()
        self.shared.close()


def await_any(processes: Sequence[WorkerProcess], seconds: float) -> list[int]:
    """Wait until some of several processes answer or end; return their places in the sequence, none if time is up."""
    places = {process.fileno(): place for place, process in enumerate(processes)}
    waiting = select.poll()
    for file in places:
        waiting.register(file, select.POLLIN)
    return sorted(places[file] for file, _ in waiting.poll(max(0.0, seconds) * 1000))


Made = TypeVar("Made", bound=WorkerProcess)


def answering(made: Callable[[], Made], target: Target, seconds: float) -> Made:
    """Return a new process whose device gives the known answer.

    Raises
    ------
    DeviceLost
        If two do not get it.
    """
    for _ in range(2):
        worker = made()
        try:
            if worker.ask({"probe": True}, seconds)["good"]:
                return worker
        except Faulted:
            continue
        except BaseException:
            worker.kill()
            raise
        worker.kill()
    raise DeviceLost(f"{target.name}: two fresh processes got no known answer from the device")
