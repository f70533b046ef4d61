"""Several virtual devices in one process: each has its own tensors, memory, streams, generators, and end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.virtual

BEGIN = """
import torch, torch_npu
from npudiff.device.virtual import faults
first, second = torch.device("npu:0"), torch.device("npu:1")
"""


def run(code, *, devices=3, visible=None):
    """Run code with several devices; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NPUDIFF_VIRTUAL")}
    environment.pop("ASCEND_RT_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["ASCEND_RT_VISIBLE_DEVICES"] = visible
    command = [sys.executable, "-m", "npudiff", "virtual", "--devices", str(devices), "--", sys.executable, "-c"]
    done = subprocess.run([*command, BEGIN + code], capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_results_are_where_their_arguments_are():
    lines = run(
        """
one, other = torch.arange(4.0, device=first), torch.arange(4.0, device=second)
print(torch.npu.device_count(), torch.npu.current_device())
for x in (other + 1, other.exp_(), other.to(torch.int32), other[:2].clone(), torch.cat([other, other]),
          torch.zeros(2, device=second), torch.randn(2, device="npu:1"), other.float(), torch.full_like(other, 2),
          torch_npu.npu_swiglu(other.half()), torch.stack([other]), other > 1, other.sum()):
    assert x.device == second, x
for x in (one.to(second), one.to("npu:1", torch.float16), torch.ones(2).to("npu:1"), torch.ones(2).npu(1)):
    assert x.device == second, x
assert (one.to(second) * 2).cpu().tolist() == [0, 2, 4, 6]
other.copy_(one)
assert other.cpu().tolist() == [0, 1, 2, 3]
torch.npu.set_device(2)
print(torch.ones(1, device="npu").device, torch.arange(3, device="npu").device, other.neg().device)
with torch.npu.device(1):
    print(torch.ones(1).npu().device, torch.npu.current_device())
print(torch.npu.current_device(), other.sum().item(), torch.npu.get_device_name(1))
"""
    )
    assert lines == ["3 0", "npu:2 npu:2 npu:1", "npu:1 1", "2 6.0 Ascend910B3"]


@pytest.mark.slow
def test_tensors_of_two_devices_do_not_mix_but_in_copies():
    lines = run(
        """
one, other = torch.ones(4, device=first), torch.ones(4, device=second)
for act in (lambda: one + other, lambda: torch.mm(one.view(2, 2), other.view(2, 2)), lambda: torch.cat([other, one])):
    try:
        act()
    except RuntimeError as error:
        print(str(error).split("! ")[0])
print((one + torch.tensor(2.0, device=second)).cpu().tolist())
"""
    )
    same = "Expected all tensors to be on the same device, but found at least two devices,"
    assert lines == [
        f"{same} npu:0 and npu:1",
        f"{same} npu:0 and npu:1",
        f"{same} npu:1 and npu:0",
        "[3.0, 3.0, 3.0, 3.0]",
    ]


@pytest.mark.slow
def test_gradients_streams_graphs_and_generators_are_each_devices_own():
    lines = run(
        """
weight = torch.ones(3, device=second, requires_grad=True)
(weight * torch.arange(3.0, device=second)).sum().backward()
print(weight.grad.device, weight.grad.cpu().tolist())
heads = torch.ones(1, 1, 2, 8, device=second, requires_grad=True)
torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).sum().backward()
print(heads.grad.device)
for device in (0, 1):
    torch.npu.set_device(device)
    torch.npu.manual_seed(5)
draws = [torch.rand(3, device=device).cpu() for device in (first, second)]
assert torch.equal(*draws)
assert not torch.equal(torch.rand(3, device=first).cpu(), draws[1])
torch.npu.set_device(1)
x, graph = torch.ones(3, device="npu"), torch.npu.NPUGraph()
with torch.npu.graph(graph):
    y = x * 2
x.fill_(4)
graph.replay()
print(y.device, y.cpu().tolist())
stream = torch.npu.Stream(device=first)
with torch.npu.stream(stream):
    print((torch.ones(2, device=first) + 1).cpu().tolist(), torch.npu.current_device())
torch.npu.synchronize(0)
"""
    )
    assert lines == ["npu:1 [0.0, 1.0, 2.0]", "npu:1", "npu:1 [8.0, 8.0, 8.0]", "[2.0, 2.0] 0"]


@pytest.mark.slow
def test_memory_is_counted_for_each_device():
    lines = run(
        """
faults.set_memory(1 << 20 << 6)  # 64 MiB each
kept = torch.empty((40 << 20) - 4096, dtype=torch.uint8, device=second)  # torch_npu's allocator asks for 40 MiB
print(torch.npu.memory_allocated(0), torch.npu.memory_allocated(1) >> 10)
for index, device in enumerate((first, second)):
    torch.npu.set_device(index)
    print(faults.memory()[1] >> 20, torch.npu.mem_get_info(index)[0] >> 20)
other = torch.empty(40 << 20, dtype=torch.uint8, device=first)
try:
    torch.empty(40 << 20, dtype=torch.uint8, device=second)
except torch.OutOfMemoryError as error:
    print("NPU 1;" in str(error))
"""
    )
    assert lines[0] == f"0 {40 << 10}"  # what is left of 40 MiB is too little to be another block of the allocator
    assert lines[1:3] == ["0 64", "40 24"]
    assert lines[3:] == ["True"]


@pytest.mark.slow
def test_a_device_that_is_lost_leaves_the_others():
    lines = run(
        """
one, other = torch.ones(2, device=first), torch.ones(2, device=second)
torch.npu.set_device(1)
with faults.injected("aten::add:507015"):
    try:
        other + 1
    except RuntimeError as error:
        print("507015" in str(error))
    torch.npu.set_device(0)
    torch.npu.synchronize()
    print((one * 3).cpu().tolist())
    torch.npu.set_device(1)
    try:
        other * 3
    except RuntimeError as error:
        print("507015" in str(error))
print((other * 3).cpu().tolist())
"""
    )
    assert lines == ["True", "[3.0, 3.0]", "True", "[3.0, 3.0]"]


@pytest.mark.slow
def test_torch_npu_sees_the_visible_devices():
    assert run("print(torch.npu.device_count())", visible="0,2") == ["2"]


@pytest.mark.slow
def test_a_device_that_is_not_there_is_refused():
    lines = run(
        "\ntry:\n    torch.npu.set_device(3)\nexcept RuntimeError as error:\n    print(str(error).splitlines()[-1])\n"
    )
    assert lines == ["the virtual NPU has 3 devices; asked for 3"]


@pytest.mark.parametrize("option", ["--devices", "--ranks"])
def test_a_number_of_devices_that_cannot_be_is_refused(option):
    command = [sys.executable, "-m", "npudiff", "virtual", option, "0", "--", sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, f"{option} 0: expected 1 to 64" in done.stderr) == (4, True), done.stderr
