"""The judge's side: implementations whose calls are made in the process of a candidate."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import torch

from npudiff.errors import UsageError
from npudiff.model.anything import AnyInputs
from npudiff.model.constraints import Constraints
from npudiff.model.faults import Kind, RemoteError, died
from npudiff.model.frames import frames_as_sent
from npudiff.model.implementation import Implementation, Target
from npudiff.run.discovery import load_component
from npudiff.run.isolation.lingering import Lingering
from npudiff.run.isolation.stack import Stack
from npudiff.run.untrusted.nursery import MOST_MESSAGE
from npudiff.run.untrusted.wire import Malformed, pack, unpack_boxes, unpack_outputs
from npudiff.text import clipped, printable

MOST_IMPLEMENTATIONS, MOST_OPERATORS = 10_000, 1_000
_PR_SET_DUMPABLE = 4  # of <sys/prctl.h>
_NEVER_SHORT = 0.05
"""Least seconds that are waited for an answer."""


class Nursery:
    """A fresh interpreter that forks the processes of candidates.

    Parameters
    ----------
    target : Target
        Where their implementations run.
    warm_up : float
        Seconds until it, and each of them, has to be ready.
    call : float
        Seconds that a call may take.
    silent : bool
        Whether what candidates print goes nowhere, and not to standard error.
    waits : bool
        Whether it is waited for; otherwise ``await_ready`` is called before anything is asked of it.
    """

    def __init__(
        self, target: Target, warm_up: float, call: float, *, silent: bool = False, waits: bool = True
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="npudiff-"))  # for nobody else
        self.address, self.key = str(self._folder / "nursery"), secrets.token_bytes(32)
        self.warm_up, self.call = warm_up, call
        self.target = target
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # who is not root cannot write into a judge's memory
        profile = target.cann if target.name != "npu" else ""  # a device has the version that it has
        command = [sys.executable, "-m", "npudiff.run.untrusted.nursery", self.address, target.name, profile]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL if silent else None
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)  # noqa: S603 - our own module
        self._owner = os.getpid()
        atexit.register(self.close)
        assert self._process.stdin is not None  # noqa: S101 - as asked for
        self._process.stdin.write(f"{self.key.hex()}\n".encode())
        self._process.stdin.flush()
        if waits:
            self.await_ready()

    def await_ready(self) -> None:
        """Wait until it has imported what it needs; raises ``UsageError`` if it cannot."""
        assert self._process.stdout is not None  # noqa: S101 - as asked for
        if self._process.stdout.readline() != b"ready\n":
            raise UsageError("--untrusted: the process from which candidates are forked did not start")

    @property
    def alive(self) -> bool:
        """Whether it runs; only the process that has begun it knows."""
        return self._process.poll() is None

    def end(self, number: int) -> None:
        """End a process at once, whose judge is gone; nothing if it has ended, and was asked for."""
        with self.ask({"end": number, "now": True}) as connection:
            connection.recv_bytes()

    def ask(self, question: Mapping[str, Any]) -> Connection:
        """Return a connection whose first message was sent."""
        connection = Client(self.address, "AF_UNIX", authkey=self.key)
        connection.send_bytes(json.dumps(question).encode())
        return connection

    def close(self) -> None:
        """End it, and all that it has forked."""
        if self._owner != os.getpid():
            return
        if self._process.poll() is None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"end")
                self._process.stdin.close()  # workers that were forked from this process have it open as well
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class Limits:
    """What a candidate may take."""

    call: float
    """Seconds of a call."""
    memory: int | None = None
    """Bytes that it may take besides those that the nursery has; None for no limit."""
    begun: Callable[[int], None] = lambda _: None
    """Told the number of each process that is begun, for whoever has to end it if its judge does not."""


class CandidateProcess:
    """The process of a candidate, as the judge sees it: it is begun when it is needed, and anew after its end.

    Parameters
    ----------
    nursery : Nursery
        Which forks it.
    selector : str
        File or module that it imports.
    limits : Limits
        What it may take.
    """

    def __init__(self, nursery: Nursery, selector: str, limits: Limits | None = None) -> None:
        self._nursery, self._selector = nursery, selector
        self._limits = limits or Limits(nursery.call)
        self._owner = 0
        self._asks = False
        self.operators: dict[int, dict[str, int] | None] = {}
        self._connection: Connection | None = None
        self._number = 0
        self._files = (0, 0)

    def described(self) -> list[Any]:
        """Return what the candidate says of itself.

        Raises
        ------
        UsageError
            If its file does not import, or ends the process.
        """
        try:
            first = self._begin()
        except RemoteError as error:
            raise UsageError(f"--impl {self._selector}: fails to import: {error}") from None
        if "refused" in first:
            raise UsageError(clipped(printable(str(first["refused"]))))
        items = first.get("implementations")
        if not isinstance(items, list) or len(items) > MOST_IMPLEMENTATIONS:
            raise UsageError(f"--impl {self._selector}: its process does not say what is in it")
        return items

    def call(
        self, number: int, session: int | None, names: tuple[str, ...], inputs: object, *, red_zones: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the outputs of a call; of one whose tensors lie between red zones of a byte, if that is asked for.

        Raises
        ------
        RemoteError
            If it raises, does not come back, ends its process, or sends what is no output.
        """
        return self.begin_call(number, session, names, inputs, red_zones=red_zones)()

    def begin_call(
        self, number: int, session: int | None, names: tuple[str, ...], inputs: object, *, red_zones: int | None = None
    ) -> Callable[[], dict[str, torch.Tensor]]:
        """Begin a call, and return what waits for its outputs, as ``call`` does.

        Whoever does not wait for them ends the process: what it would send later is no answer to anything else.
        """
        if self._asks:
            self._end()
        if self._connection is None or self._owner != os.getpid():  # a fork of the judge has a candidate of its own
            self._asks = False
            self._begin()
        packed = pack(inputs, self._files[0])
        asked = {"call": number, "session": session, "outputs": names, "inputs": packed, "red_zones": red_zones}
        self._ask(asked)
        until = time.monotonic() + self._limits.call
        self._asks = True
        return lambda: self._finish_call(number, until)

    def _finish_call(self, number: int, until: float) -> dict[str, torch.Tensor]:
        self._asks = False
        answer = self._answer(self._limits.call, until)
        self._lingering.settle()
        if self._connection is not None and self._connection.poll(0):  # its end, or a message that nobody asked for
            raise RemoteError(Kind.DIED.value, f"after its answer, {died(self._end())}", Kind.DIED)
        if "raised" in answer:
            raise _raised(answer["raised"])
        self.operators[number] = _operators(answer.get("operators"))
        try:
            return unpack_outputs(answer.get("outputs"), self._files[1])
        except Malformed as error:
            raise RemoteError("Malformed", str(error), Kind.RAISED) from None

    def _begin(self) -> dict[str, Any]:
        """Have a process forked, and return its first message."""
        self._owner = os.getpid()
        connection = self._nursery.ask({"new": self._selector, "memory": self._limits.memory})
        self._number = int(json.loads(connection.recv_bytes())["number"])
        self._limits.begun(self._number)
        self._connection = connection
        self._lingering = Lingering(self._number)
        self._files = (
            os.memfd_create("npudiff-inputs", os.MFD_CLOEXEC),
            os.memfd_create("npudiff-outputs", os.MFD_CLOEXEC),
        )
        self._stack = Stack()
        for file in (*self._files, self._stack.file):
            send_handle(connection, file, self._number)
        return self._answer(self._nursery.warm_up)

    def _ask(self, question: Mapping[str, Any]) -> None:
        assert self._connection is not None  # noqa: S101 - it was begun
        with contextlib.suppress(OSError):  # its end is seen when it does not answer
            self._connection.send_bytes(json.dumps(question).encode())

    def _answer(self, seconds: float, until: float | None = None) -> dict[str, Any]:
        """Wait for an answer; of the seconds that it may take, some may have gone by."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - it was begun
        left = seconds if until is None else until - time.monotonic()
        try:
            if not connection.poll(max(left, _NEVER_SHORT)):
                _, frames = self._ended(asks=True)
                raise RemoteError(Kind.TIMED_OUT.value, f"no answer within {seconds:g} s", Kind.TIMED_OUT, frames)
            answer = json.loads(connection.recv_bytes(MOST_MESSAGE))
        except (EOFError, OSError):
            status, frames = self._ended()
            raise RemoteError(Kind.DIED.value, died(status), Kind.DIED, frames) from None
        except (ValueError, RecursionError):
            self._end()
            raise RemoteError(Kind.DIED.value, "its process sent no message but something else", Kind.DIED) from None
        if not isinstance(answer, dict):
            self._end()
            raise RemoteError(Kind.DIED.value, "its process sent no message but something else", Kind.DIED)
        return answer

    def _end(self) -> int:
        """End the process and return its status."""
        status, _ = self._ended()
        return status

    def _ended(self, *, asks: bool = False) -> tuple[int, tuple[str, ...]]:
        """End the process; return its status, and where it was.

        Parameters
        ----------
        asks : bool
            Whether it hangs, and is asked where; one that is dying anyway is waited for instead.
        """
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        for file in self._files:
            os.close(file)
        try:
            with self._nursery.ask({"end": self._number, "now": asks, "asks": asks}) as connection:
                status = int(json.loads(connection.recv_bytes())["status"])
            return status, frames_as_sent(self._stack.frames)
        finally:
            self._stack.close()


def _raised(said: object) -> RemoteError:
    """The exception that a candidate says it has raised; its kind decides nothing but what is done about the device."""
    if isinstance(said, list) and len(said) == 4 and all(isinstance(one, str) for one in said[:3]):
        name, text, kind, frames = said
        if kind in Kind.__members__:
            return RemoteError(clipped(printable(name), 100), text, Kind[kind], frames_as_sent(frames))
    return RemoteError("Malformed", "the candidate sent an exception that is none", Kind.RAISED)


def _operators(said: object) -> dict[str, int] | None:
    """What a candidate says of its operators: it is shown, and nothing follows from it."""
    if not isinstance(said, dict) or len(said) > MOST_OPERATORS:
        return None
    return {clipped(printable(str(name)), 100): count for name, count in said.items() if type(count) is int}


def untrusted_implementations(nursery: Nursery, selector: str, *, limits: Limits | None = None) -> list[Implementation]:
    """Return the implementations of a file that this process does not import.

    Parameters
    ----------
    nursery : Nursery
        Which forks the processes in which they run.
    selector : str
        File or module.
    limits : Limits
        What it may take; those of the nursery by default.

    Raises
    ------
    UsageError
        If the file does not import, its process does not say what it should, or a component has a history.
    """
    process = CandidateProcess(nursery, selector, limits)
    return [_implementation(process, number, one, selector) for number, one in enumerate(process.described())]


def _implementation(process: CandidateProcess, number: int, one: object, selector: str) -> Implementation:
    said = one if isinstance(one, dict) else {}
    component, name, summary = (said.get(key) for key in ("component", "name", "summary"))
    if not all(isinstance(text, str) for text in (component, name, summary)):
        raise UsageError(f"--impl {selector}: its process does not say what is in it")
    judged = load_component(str(component))
    if judged.history is not None:
        raise UsageError(f"--impl {selector}: {component} is judged by calls of an object, and not with --untrusted")
    if judged.ranks is not None:
        raise UsageError(f"--impl {selector}: {component} is computed by several ranks, and not with --untrusted")
    try:
        constraints = Constraints.of(unpack_boxes(said.get("supports")))
    except Malformed as error:
        raise UsageError(f"--impl {selector}: {printable(str(name))}: {error}") from None
    sessions = itertools.count(1)

    def beginning(inputs: AnyInputs, target: Target) -> Callable[[], dict[str, torch.Tensor]]:
        del target
        return process.begin_call(number, None, judged.outputs, inputs)

    def calling(session: int | None) -> Callable[[AnyInputs, Target], dict[str, torch.Tensor]]:
        def function(inputs: AnyInputs, target: Target) -> dict[str, torch.Tensor]:
            del target  # the candidate's process has its own
            return process.call(number, session, judged.outputs, inputs)

        return function

    def in_red_zones(fill: int) -> Implementation:
        def function(inputs: AnyInputs, target: Target) -> dict[str, torch.Tensor]:
            del target
            return process.call(number, None, judged.outputs, inputs, red_zones=fill)

        return replace(made, function=function, factory=None, begins=None)

    stateful = said.get("stateful") is True
    made = Implementation(
        str(component),
        str(name),
        calling(None),
        constraints,
        clipped(printable(str(summary))),
        origin=selector,
        selector=selector,
        factory=(lambda: calling(next(sessions))) if stateful else None,
        untrusted=True,
        begins=None if stateful else beginning,
        on_device=said.get("on_device") is True,
        checks=said.get("checks") is True,
        operators=lambda: process.operators.get(number),
    )
    return replace(made, elsewhere_in_red_zones=in_red_zones)
