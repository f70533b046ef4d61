"""The limits of this host: processors, forks, and isolation."""

from __future__ import annotations

import os
import sys

from npudiff.model.component import Subject
from npudiff.model.implementation import Target

MOST_WORKERS = 4
"""Most workers of a run that does not say how many; each holds torch and the tensors of a case."""


def usable_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_this_host(target: Target) -> bool:
    """Whether memory and kernels of a target are the host's."""
    return target.on_host or target.device == "cpu"


def may_end_its_process(subject: Subject) -> bool:
    """Whether a call may end the process or spoil a device that is shared: what is not built in, or is not here."""
    return not (subject.implementation.built_in and on_this_host(subject.target))


def can_isolate() -> bool:
    """Whether isolation works here: it needs Linux's process groups and anonymous files."""
    return sys.platform == "linux"


def default_workers(target: Target) -> int:
    """Return how many processes to run jobs in: several on the host, one where a device is shared."""
    if not on_this_host(target) or sys.platform != "linux":  # elsewhere a fork of a process with torch is not safe
        return 1
    return max(1, min(MOST_WORKERS, usable_processors()))
