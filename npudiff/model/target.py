"""Where an implementation runs: a CPU simulator, a virtual NPU, or hardware."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


class TargetUnavailable(Exception):
    """The target cannot run here; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A place to run implementations."""

    name: str
    """``sim``, ``virtual`` or ``npu``."""
    device: str
    """The torch device of the tensors that implementations get, such as ``cpu`` or ``npu:0``."""
    cann: str
    """The CANN profile of a simulator, or the CANN version of a device."""
    activate: Callable[[], AbstractContextManager[object]]
    """Returns a context manager inside which operators behave as on this target."""
    synchronize: Callable[[], None] = lambda: None
    """Waits for the device, so that an error surfaces in the case that caused it."""
    other_canns: tuple[str, ...] = ()
    """CANN profiles under which the same cases may behave otherwise, where it has them."""
    on_host: bool = False
    """Whether its memory and kernels are the host's, whatever its device is called: forked processes then have a device
    each."""


TargetFactory = Callable[[str | None], Target]
"""Builds a target for a CANN profile (None is the default); raises ``TargetUnavailable``."""
