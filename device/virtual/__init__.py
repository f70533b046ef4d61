"""The virtual NPU: the real torch_npu on host memory, for machines without a card.

::

    import npudiff.device.virtual

    npudiff.device.virtual.enable()

    import torch

    x = torch.ones(3, device="npu")

Or, without a change to a script: ``npudiff virtual -- python script.py``.

What it is: torch_npu's own tensors, allocator, streams, storage formats and Python code; ``aten`` operators run the
CPU's kernels on the device's memory, torch_npu's operators run the simulator's. Processes of one machine are ranks that
communicate over ``hccl``, and a process may have several devices. What it is not: fast, or a model of time. An operator
that neither the CPU nor the simulator has raises an error that names it.

Importing this package imports neither torch nor torch_npu.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from npudiff.device.virtual import faults, triton
from npudiff.device.virtual.loading import VirtualNpuUnavailable, load

if TYPE_CHECKING:
    from torch.library import Library

__all__ = ["VirtualNpuUnavailable", "enable", "enabled"]


def enable() -> None:
    """Make ``npu:0`` a device of this process. Idempotent.

    Call it before anything imports torch_npu: it does that itself. The first call on a machine builds the stand-in for
    CANN with the system's C compiler, which takes about two seconds; the result is kept in the user's cache directory.

    Raises
    ------
    VirtualNpuUnavailable
        If there is no C compiler, torch_npu is missing or belongs to another torch, or it has been imported already;
        the message is one line.
    """
    _enabled()


def enabled() -> bool:
    """Whether this process has a virtual NPU."""
    return _enabled.cache_info().currsize > 0


@cache
def _enabled() -> dict[str, Library]:
    """Load and register once; the cache keeps the libraries alive, and with them the registrations."""
    try:
        asked = faults.parse(os.environ.get(faults.VARIABLE, ""))
    except ValueError as error:
        raise VirtualNpuUnavailable(f"{faults.VARIABLE}: {error}") from None
    runtime = load()
    faults.arm(runtime, asked)
    from torch.library import Library  # noqa: PLC0415 - loaded now

    from npudiff.device.virtual import aten, operators, tasks  # noqa: PLC0415 - they import torch

    tasks.connect(runtime)

    libraries: dict[str, Any] = {}

    def library(space: str) -> Any:  # noqa: ANN401 - torch.library.Library, whose methods have no types
        if space not in libraries:
            libraries[space] = Library(space, "IMPL")  # type: ignore[no-untyped-call]
        return libraries[space]

    with warnings.catch_warnings():
        # Torch says once that a kernel is registered over another one, which is what is done here.
        warnings.filterwarnings("ignore", message=r".*other operators may also be overridden")
        operators.register(library)
        operators.replace_functions()
        aten.register(library("aten"))
    if os.environ.get(triton.ASKED):
        triton.enable()
    return libraries
