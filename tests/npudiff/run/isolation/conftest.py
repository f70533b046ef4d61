"""An implementation with planted faults: numbers that crash, hang, poison or are wrong, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from npudiff.model.job import Isolation
from npudiff.run.isolation.reaper import reaper

STATE = {"poisoned": False}


def children():
    """Processes whose parent this one is."""
    here = os.getpid()
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == here]
    return [pid for pid in found if pid != reaper().pid]


def _parent(path):
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def shared_files():
    """Open files of this process that are memory without a name."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except OSError:
            continue
    return [name for name in names if "memfd:npudiff" in name]


@pytest.fixture
def state():
    """What implementations of a test keep between calls: each process has its own, and this one's stays as it is."""
    yield STATE
    assert STATE == {"poisoned": False}


@pytest.fixture
def planted(toy):
    """Make an implementation of planted faults, by the first number of a case."""

    def made(*, segfaults=(), exits=(), aborts=(), codes=None, hangs=(), poisons=(), wrong=(), rejects=()):
        def function(inputs, target):
            number = int(inputs.x[0])
            if STATE["poisoned"]:
                raise RuntimeError("synchronize failed, error code is 507035: context is abort")
            if number in segfaults:
                os.kill(os.getpid(), signal.SIGSEGV)
            if number in exits:
                os._exit(3)
            if number in aborts:
                os.abort()
            if number in (codes or {}):
                STATE["poisoned"] = True
                raise RuntimeError(f"NPU function error, error code is {codes[number]}")
            if number in hangs:
                time.sleep(60)
            if number in rejects:
                raise RuntimeError("call aclnnFoo failed, error code is 561002: tiling failed")
            if number in poisons:
                STATE["poisoned"] = True
            return toy.double(inputs) + (number in wrong)

        return function

    return made


@pytest.fixture
def isolation(tmp_path):
    return Isolation(tmp_path / "journal", warm_up=30.0, run=0.4)


@pytest.fixture
def left():
    """What a test must not leave: processes, and shared memory."""
    before = set(children()), len(shared_files())
    yield SimpleNamespace(children=children, shared_files=shared_files)
    assert set(children()) <= before[0]
    assert len(shared_files()) <= before[1]
