"""Who asks gets Triton on the virtual NPU, its child processes too; who does not ask has Triton as it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from npudiff.device.virtual import VirtualNpuUnavailable, triton

KERNEL = """
import triton
import triton.language as tl
import torch

@triton.jit
def thirds(out):
    place = tl.arange(0, 3)
    tl.store(out + place, (place + tl.program_id(0)).to(tl.bfloat16) / 3)

out = torch.zeros(3, dtype=torch.bfloat16, device="npu")
thirds[(1,)](out)
print(out.tolist() == (torch.arange(3).bfloat16() / 3).tolist())
"""

SHOW = """
import os, sys
import triton
import triton.language.extra as extra
from triton.backends import backends
from triton.runtime import interpreter
print(hasattr(extra, "cann"), "npu" in backends, interpreter.GridExecutor.__module__)
print("TRITON_INTERPRET" in os.environ, [name for name in sys.modules if name.startswith("npudiff.device.virtual.tri")])
"""


def run(*command, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in (triton.INTERPRET, triton.ASKED)}
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)


def virtual(*command, options=()):
    return run(sys.executable, "-m", "npudiff", "virtual", *options, "--", *command)


@pytest.mark.triton
def test_a_script_and_a_process_that_it_starts(tmp_path):
    script = tmp_path / "kernel.py"
    script.write_text(
        KERNEL
        + "import subprocess, sys\nif sys.argv[1:] != ['again']:\n"
        + "    sys.stdout.flush()\n    subprocess.run([sys.executable, __file__, 'again'], check=True)\n"
    )
    done = virtual(sys.executable, str(script), options=["--triton"])
    assert done.stdout == "True\nTrue\n", done.stderr


@pytest.mark.triton
@pytest.mark.parametrize("first", ["triton", "torch"])
def test_it_does_not_matter_what_is_imported_first(tmp_path, first):
    script = tmp_path / "kernel.py"
    script.write_text(f"import {first}\n{KERNEL}")
    done = virtual(sys.executable, str(script), options=["--triton"])
    assert done.stdout == "True\n", done.stderr


@pytest.mark.triton
def test_a_variable_asks_for_it_where_npudiff_makes_the_device(tmp_path):
    script = tmp_path / "kernel.py"
    script.write_text(f"import npudiff.device.virtual\nnpudiff.device.virtual.enable()\n{KERNEL}")
    done = run(sys.executable, str(script), TORCH_DEVICE_BACKEND_AUTOLOAD="0", **{triton.ASKED: "1"})
    assert done.stdout == "True\n", done.stderr


@pytest.mark.triton
def test_a_program_that_does_not_ask_has_triton_as_it_is():
    own = "False False triton.runtime.interpreter\nFalse ['npudiff.device.virtual.triton']\n"
    done = virtual(sys.executable, "-c", f"import torch\n{SHOW}")
    assert done.stdout == own, done.stderr
    assert run(sys.executable, "-c", SHOW).stdout == own.replace("'npudiff.device.virtual.triton'", "")


@pytest.mark.triton
def test_after_triton_it_is_too_late():
    code = (
        "import triton, npudiff.device.virtual as v\n"
        "try:\n    v.triton.enable()\nexcept v.VirtualNpuUnavailable as error:\n    print(error)\n"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout == "triton has been imported without the virtual NPU: enable it before that\n", done.stderr


@pytest.mark.triton
def test_a_kernel_is_checked_as_any_other_implementation(tmp_path):
    (tmp_path / "kernels.py").write_text(
        "import torch, triton, triton.language as tl\nimport npudiff\n\n"
        "@triton.jit\n"
        "def hide(lengths, out, window, CAPACITY: tl.constexpr):\n"
        "    row, key = tl.program_id(0), tl.arange(0, CAPACITY)\n"
        "    length = tl.load(lengths + row)\n"
        "    hidden = (key < length - window) | (key >= length)\n"
        "    tl.store(out + row * CAPACITY + key, hidden.to(tl.int8))\n\n"
        "@npudiff.implementation('swa_mask', name='mine')\n"
        "def mine(inputs, target):\n"
        "    lengths, capacity = inputs.kv_lengths.to(target.device), inputs.capacity\n"
        "    out = torch.empty(len(lengths), 1, capacity, dtype=torch.int8, device=target.device)\n"
        "    window = 1 << 30 if inputs.window is None else inputs.window\n"
        "    hide[(len(lengths),)](lengths, out, window, CAPACITY=capacity, multibuffer=True)\n"
        "    return out.bool()\n"
    )
    command = [sys.executable, "-m", "npudiff", "check", "swa_mask", "--impl", "kernels.py", "--target", "virtual"]
    environment = {**os.environ, triton.ASKED: "1"}
    environment.pop(triton.INTERPRET, None)
    done = subprocess.run(
        [*command, "--examples", "10"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_triton_it_is_one_line(monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else original(name))
    with pytest.raises(VirtualNpuUnavailable, match=r"^triton is not installed: pip install 'npudiff\[triton\]'$"):
        triton.check()


@pytest.mark.parametrize(("version", "old"), [("3.2.0", True), ("3.6.1", True), ("3.7.0", False), ("4.0.0+git", False)])
def test_an_old_triton_is_one_line(monkeypatch, version, old):
    monkeypatch.setattr(triton, "package_folder", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if not old:
        triton.check()
        return
    with pytest.raises(
        VirtualNpuUnavailable, match=rf"^triton {version} is too old for the virtual NPU, which needs 3.7"
    ):
        triton.check()
