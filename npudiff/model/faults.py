"""Classes of errors, by what they mean for the device: usable, in doubt, or lost for this process."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from enum import Enum

from npudiff.model.frames import frames_of

_REJECTED = re.compile(r"\b(561\d{3}|161\d{3}|EZ\d{4})\b")
"""Calls that the host refuses before anything is launched: tiling (561002), parameters (161002, EZ1001)."""

_FAULT = re.compile(r"\b(507\d{3}|107030)\b|context is abort", re.IGNORECASE)
"""The runtime's errors. 507899 is what a dead context says; 107030 is a capture that is invalid."""

_MEMORY = re.compile(r"out of memory|\b207018\b", re.IGNORECASE)


class Kind(Enum):
    """What happened to a call."""

    RAISED = "exception"
    REJECTED = "rejected call"
    OUT_OF_MEMORY = "out of memory"
    FAULT = "device fault"
    DIED = "process died"
    TIMED_OUT = "time-out"

    @property
    def ends_worker(self) -> bool:
        """Whether results of this process are invalid from now on."""
        return self in (Kind.FAULT, Kind.DIED, Kind.TIMED_OUT)

    @property
    def needs_probe(self) -> bool:
        """Whether the device has to pass a known-answer probe before it is used again."""
        return self in (Kind.REJECTED, Kind.OUT_OF_MEMORY)


def kind_of(text: str) -> Kind:
    """Return the kind of an exception by its text; a device fault takes precedence."""
    if _FAULT.search(text):
        return Kind.FAULT
    if _REJECTED.search(text):
        return Kind.REJECTED
    return Kind.OUT_OF_MEMORY if _MEMORY.search(text) else Kind.RAISED


class Faulted(Exception):
    """A case could not be judged, because of what it did to the process or the device.

    Parameters
    ----------
    kind : Kind
        What happened.
    text : str
        What was said, or seen from outside.
    frames : sequence of str
        Where the process was, as ``npudiff.model.frames`` says it.
    """

    def __init__(self, kind: Kind, text: str, frames: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.kind, self.frames = kind, tuple(frames)


class RemoteError(Exception):
    """An exception of the implementation in its process: its type and text.

    Parameters
    ----------
    name, text : str
        Type and text.
    kind : Kind
        What it says of the device.
    frames : sequence of str
        Where it was raised, as ``npudiff.model.frames`` says it.
    """

    def __init__(self, name: str, text: str, kind: Kind, frames: Sequence[str] = ()) -> None:
        super().__init__(f"{name}: {text}")
        self.name, self.text, self.kind, self.frames = name, text, kind, tuple(frames)

    @classmethod
    def of(cls, error: BaseException) -> RemoteError:
        """Tell of an exception, as from another process; one that is from there already stays as it is."""
        if isinstance(error, cls):
            return error
        name = type(error).__name__
        return cls(name, str(error), kind_of(f"{name}: {error}"), frames_of(error))


def died(status: int) -> str:
    """Say how a process ended, by its wait status: a signal, or an exit code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"the process died: {name}" + (" (killed, as for want of memory)" if name == "SIGKILL" else "")
    return f"the process ended: exit code {os.WEXITSTATUS(status)}"
