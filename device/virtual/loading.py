"""Loading torch_npu where there is no CANN: the stand-in first, then the package itself."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from npudiff.device.virtual.build import RUNTIME, CannotBuild, build

CANN, CANN_VERSION, SOC = "NPUDIFF_VIRTUAL_CANN", "NPUDIFF_VIRTUAL_CANN_VERSION", "NPUDIFF_VIRTUAL_SOC"
"""Variables that say what the device is: the CANN profile by name, the version that CANN has, and the chip's name."""

DEVICES = "NPUDIFF_VIRTUAL_DEVICES"
"""Variable: how many devices a process has, of which ``ASCEND_RT_VISIBLE_DEVICES`` chooses."""

MOST = 64
"""Devices of a process, and ranks, at most."""


class VirtualNpuUnavailable(RuntimeError):
    """The virtual NPU cannot run here; the message says why in one line."""


@cache
def load() -> ctypes.CDLL:
    """Import the real torch_npu on the stand-in for CANN, and return the stand-in.

    Every operator of torch_npu exists afterwards, with its true schema and its own shape rules; its device is there,
    and has memory and streams, but no operators. Idempotent. Call it before anything imports torch_npu, and before the
    simulator defines operators.

    Raises
    ------
    VirtualNpuUnavailable
        If torch_npu is missing, belongs to another torch, has been imported on a real CANN, or does not load; or if the
        stand-in cannot be built.
    """
    runtime = stand_in()
    with _without_autoload(), without_the_word_that_cann_is_missing():
        try:
            import torch  # noqa: F401, PLC0415 - the first import of a process, perhaps, with autoload off
            import torch_npu  # noqa: F401, PLC0415
        except Exception as error:
            raise VirtualNpuUnavailable(f"torch_npu does not load on the stand-in: {error}") from error
    return runtime


@cache
def stand_in() -> ctypes.CDLL:
    """Load the stand-in for CANN, so that torch_npu finds it when it is imported next. Idempotent.

    Raises
    ------
    VirtualNpuUnavailable
        As :func:`load`.
    """
    if "torch_npu" in sys.modules:
        raise VirtualNpuUnavailable("torch_npu has been imported without the virtual NPU: enable it before that")
    if _operators_are_defined():  # torch_npu would define them again, and end the process
        raise VirtualNpuUnavailable(
            "the simulator has defined torch_npu's operators: enable the virtual NPU before that"
        )
    version = version_of_torch_npu()
    try:
        folder = build(package_folder("torch_npu"), package_folder("torch"), version)
    except CannotBuild as error:
        raise VirtualNpuUnavailable(str(error)) from error
    # In the calling thread, or copies would run beside operators, which are over when their call returns.
    os.environ["TASK_QUEUE_ENABLE"] = "0"
    runtime = ctypes.CDLL(str(folder / RUNTIME), mode=ctypes.RTLD_GLOBAL)
    for path in sorted(folder.glob("*.so")):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    atexit.register(runtime.npudiff_stop_ranks)  # before torch_npu registers its own end, which is then over
    return runtime


def _operators_are_defined() -> bool:
    """Whether somebody has defined operators that torch_npu defines."""
    if "torch" not in sys.modules:
        return False
    import torch  # noqa: PLC0415 - imported already

    return bool(torch._C._jit_get_schemas_for_operator("npu::get_npu_format"))


def version_of_torch_npu() -> str:
    """Return the version of the installed torch_npu, if it fits the installed torch.

    Raises
    ------
    VirtualNpuUnavailable
        If one is missing, or torch_npu was built for another torch: it would crash where their symbols differ.
    """
    package_folder("torch")
    package_folder("torch_npu")
    torch, torch_npu = (importlib.metadata.version(name) for name in ("torch", "torch_npu"))
    if _series(torch) != _series(torch_npu):
        wanted = ".".join(_series(torch_npu))
        raise VirtualNpuUnavailable(f"torch_npu {torch_npu} needs torch {wanted}, and torch is {torch}")
    if _is_for_cuda() and [int(number) for number in _series(torch)[:2]] >= [2, 13]:
        raise VirtualNpuUnavailable(
            f"torch {torch} is a build for CUDA, beside which torch_npu ends the process: install the CPU's, torch+cpu"
        )
    return torch_npu


def _is_for_cuda() -> bool:
    """Whether torch and torch_npu would both register settings of allocators, which ends the process (torch 2.13)."""
    return (package_folder("torch") / "lib" / "libtorch_cuda.so").is_file()


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise VirtualNpuUnavailable(f"{name} is not installed: pip install 'npudiff[npu]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _series(version: str) -> Sequence[str]:
    """Return the numbers that torch and torch_npu have in common, of ``2.13.0+cpu`` or ``2.13.0.post2``."""
    return version.partition("+")[0].split(".")[:3]


@contextlib.contextmanager
def _without_autoload() -> Iterator[None]:
    """Keep torch from importing torch_npu by itself, which is done here."""
    before = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD")
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    try:
        yield
    finally:
        del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]
        if before is not None:
            os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = before


@contextlib.contextmanager
def without_the_word_that_cann_is_missing() -> Iterator[None]:
    """Hold back one line that torch_npu prints when it is imported; all else that it prints is passed on."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        lines = [line for line in printed.getvalue().splitlines() if "ASCEND_HOME_PATH" not in line]
        if lines:
            print("\n".join(lines))  # what torch_npu said
