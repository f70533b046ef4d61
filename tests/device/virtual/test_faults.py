"""Faults happen when they are asked for, to the call that is named, and at no other time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from npudiff.device.virtual import faults
from npudiff.device.virtual.faults import Fault, parse


def test_faults_are_read():
    assert parse("npu_swiglu:507015@3, aten::mm:hang ,*:memory@10,npu::npu_rms_norm.out:value,") == [
        Fault("npu_swiglu", "507015", 3),
        Fault("aten::mm", "hang", 1),
        Fault("*", "memory", 10),
        Fault("npu::npu_rms_norm.out", "value", 1),
    ]
    assert parse("") == parse(" , ") == []


@pytest.mark.parametrize("text", ["mm", "mm:", "mm:crash", "mm:5070", "mm:hang@0", "mm:hang@x", ":hang", "m m:hang"])
def test_what_is_no_fault_is_refused(text):
    with pytest.raises(ValueError, match="is no fault: expected OPERATOR:WHAT or OPERATOR:WHAT@CALL, where WHAT is"):
        parse(text)


@pytest.mark.parametrize(
    ("name", "hit"),
    [
        *((name, True) for name in ("add", "add.Tensor", "aten::add", "aten::add.Tensor", "*")),
        *((name, False) for name in ("add_", "npu::add", "add.Scalar", "ad")),
    ],
)
def test_operators_are_named_in_short_or_in_full(name, hit):
    assert Fault(name, "value").strikes("aten::add.Tensor") is hit


def test_the_call_that_is_meant_is_struck_and_no_other():
    fault = Fault("mm", "value", 3)
    assert [fault.strikes("aten::mm") for _ in range(5)] == [False, False, True, False, False]


def test_without_a_virtual_npu_there_is_nothing_to_break(monkeypatch):
    monkeypatch.setattr(faults._state, "runtime", None)
    with pytest.raises(RuntimeError, match=r"npudiff.device.virtual.enable\(\) comes first"):
        faults.set_memory(1)


@pytest.mark.virtual
class TestOnTheDevice:
    """What torch_npu makes of them."""

    @pytest.fixture
    def ones(self):
        import torch

        return torch.ones(4, 4, device="npu")

    def test_a_lost_device_fails_everywhere(self, ones):
        import torch

        event, other = torch.npu.Event(), torch.zeros(2, device="npu")
        with faults.injected("mm:507015@2"):
            assert (ones @ ones).sum().item() == 64
            for attempt in (
                lambda: ones @ ones,
                lambda: other + 1,
                other.cpu,
                lambda: torch.ops.npu.npu_swiglu(ones),
                torch.npu.synchronize,
                event.record,
                lambda: torch.npu.current_stream().synchronize(),
            ):
                with pytest.raises(RuntimeError, match="error code is 507015"):
                    attempt()
        assert (ones @ ones).sum().item() == 64

    def test_the_message_says_whose_fault_it_is(self, ones):
        import torch

        with faults.injected("npu_swiglu:507035"), pytest.raises(RuntimeError) as raised:
            torch.ops.npu.npu_swiglu(ones)
        assert "507035" in str(raised.value)
        assert "npu::npu_swiglu failed on the virtual NPU, as NPUDIFF_VIRTUAL_FAULTS or a test asked" in str(
            raised.value
        )

    def test_memory_runs_out_as_on_a_card(self, ones):
        import torch

        with faults.injected("*:memory@2"):
            assert (ones + 1).shape == (4, 4)
            with pytest.raises(torch.OutOfMemoryError, match=r"NPU out of memory. Tried to allocate"):
                ones + 1
            assert (ones + 1).sum().item() == 32

    def test_a_device_may_be_small(self, ones):
        import torch

        total, used, _ = faults.memory()
        torch.npu.empty_cache()
        try:
            faults.set_memory(used + (30 << 20))
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(64 << 20, dtype=torch.uint8, device="npu")
            assert torch.npu.mem_get_info()[1] == used + (30 << 20)
        finally:
            faults.set_memory(total)
        assert torch.empty(64 << 20, dtype=torch.uint8, device="npu").numel() == 64 << 20

    @pytest.mark.parametrize("fault", ["mm:value", "aten::mm:value", "*:value"])
    def test_one_element_is_wrong(self, ones, fault):
        import torch

        with faults.injected(fault):
            first, second = (ones @ ones).cpu(), (ones @ ones).cpu()
        wrong = first != 4
        assert wrong.sum() == 1
        assert first[2, 2] == 9
        assert torch.equal(second, torch.full((4, 4), 4.0))

    def test_one_element_is_wrong_of_what_is_written_in_place(self, ones):
        import torch

        cache = torch.zeros(2, 16, 1, 32, dtype=torch.half, device="npu")
        tokens, slots = torch.ones(1, 1, 32).half().npu(), torch.zeros(1, dtype=torch.int32, device="npu")
        with faults.injected("_npu_reshape_and_cache:value, add_:value"):
            torch.ops.atb._npu_reshape_and_cache(tokens, tokens, cache, cache.clone(), slots)
            ones.add_(1)
        assert cache.sum().item() == 32 + 1
        assert (ones != 2).sum().item() == 1

    def test_nothing_is_wrong_of_a_result_without_elements(self, ones):
        with faults.injected("add:value"):
            assert (ones[:0] + 1).shape == (0, 4)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", "import npudiff.device.virtual; npudiff.device.virtual.enable(); import torch\n" + code],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.virtual
def test_a_process_has_its_faults_from_the_environment():
    code = "x = torch.ones(2, device='npu')\nx + 1\ntry: x + 1\nexcept RuntimeError as e: print('507015' in str(e))"
    done = run(code, NPUDIFF_VIRTUAL_FAULTS="add:507015@2")
    assert done.stdout == "True\n"


@pytest.mark.virtual
def test_a_fault_that_cannot_be_read_is_one_line():
    done = run("", NPUDIFF_VIRTUAL_FAULTS="add")
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert "VirtualNpuUnavailable: NPUDIFF_VIRTUAL_FAULTS: 'add' is no fault: expected OPERATOR:WHAT" in line


@pytest.mark.virtual
def test_a_call_that_hangs_does_not_return():
    code = "print('begun', flush=True)\ntorch.ones(2, device='npu') + 1\nprint('over')"
    command = [
        sys.executable,
        "-c",
        "import npudiff.device.virtual; npudiff.device.virtual.enable(); import torch\n" + code,
    ]
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "NPUDIFF_VIRTUAL_FAULTS": "aten::add:hang"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
