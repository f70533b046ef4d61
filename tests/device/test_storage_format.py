"""Reading what lies in a device's memory; the runtime of a device is played by one that copies host memory."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from npudiff import Target
from npudiff.device import targets
from npudiff.device.ascend import storage_format as module
from npudiff.device.ascend.storage_format import FRACTAL_NZ, format_cast, physical_storage


def a_device(waits):
    return Target("npu", "npu:0", "9.0", lambda: None, lambda: waits.append("synchronized"))


class Runtime:
    """aclrtMemcpy on host memory: it returns the number of an error, 0 for none."""

    def __init__(self, error=0):
        self.error, self.calls = error, []

    def __call__(self, name):
        assert name == "libascendcl.so"
        return SimpleNamespace(aclrtMemcpy=self.copy_of())

    def copy_of(self):
        def copy(destination, room, source, count, kind):
            self.calls.append((room, count, kind))
            ctypes.memmove(destination, source, count)
            return self.error

        return copy


def test_on_a_device_the_whole_storage_is_copied_byte_by_byte_after_a_wait(monkeypatch):
    runtime, waits = Runtime(), []
    monkeypatch.setattr(module.ctypes, "CDLL", runtime)
    tensor = torch.arange(12, dtype=torch.float16).view(3, 4)
    found = physical_storage(tensor[1:].t(), a_device(waits))
    assert found.dtype == torch.float16
    assert found.tolist() == list(range(12))
    assert runtime.calls == [(24, 24, 2)]
    assert waits == ["synchronized"]
    found.fill_(1)
    assert tensor[0].tolist() == [0, 1, 2, 3]


def test_an_error_of_the_runtime_is_an_error(monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", Runtime(107002))
    with pytest.raises(RuntimeError, match="aclrtMemcpy of 24 bytes to the host failed with error 107002"):
        physical_storage(torch.zeros(12, dtype=torch.float16), a_device([]))


def test_on_the_simulator_it_is_what_a_device_would_have():
    target = targets.sim(None)
    tensor = torch.arange(1.0, 7.0).view(2, 3).clone()  # a storage made for a matrix, not for its elements
    assert physical_storage(tensor, target).tolist() == [1, 2, 3, 4, 5, 6]
    stored = physical_storage(format_cast(tensor, FRACTAL_NZ, target), target)
    assert stored.tolist() == [1, 2, 3] + 13 * [0] + [4, 5, 6] + 237 * [0]


@pytest.mark.parametrize("name", ["npu", "virtual"])
def test_a_device_is_told_to_allow_internal_formats_before_a_cast(monkeypatch, name):
    config = SimpleNamespace(allow_internal_format=False)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: {"npu": SimpleNamespace(config=config)}[kind])
    targets.sim(None)  # there is an operator to call
    format_cast(torch.zeros(2, 3), FRACTAL_NZ, Target(name, "npu:0", "9.0", lambda: None))
    assert config.allow_internal_format is True
