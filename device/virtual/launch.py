"""Running somebody's program, unchanged, where ``npu`` is the virtual device."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence

from npudiff.device.virtual.build import CannotBuild, build
from npudiff.device.virtual.loading import (
    CANN,
    CANN_VERSION,
    DEVICES,
    MOST,
    SOC,
    VirtualNpuUnavailable,
    package_folder,
    version_of_torch_npu,
)
from npudiff.device.virtual.ranks import run_ranks
from npudiff.device.virtual.triton import ASKED, INTERPRET, check
from npudiff.errors import UsageError, unknown
from npudiff.model.implementation import TargetUnavailable
from npudiff.model.ranks import RANK_TIMEOUT
from npudiff.run.environment import of_the_user
from npudiff.run.on_import import hooked
from npudiff.text import printable

SOC_NAME = re.compile(r"Ascend\d\w*(-\d)?")
"""Names of chips; torch_npu refuses those that it does not know."""

HOOKS = {"torch_npu": "npudiff.device.virtual.startup:under_torch_npu"}


TRITON_HOOKS = {"triton": "npudiff.device.virtual.triton.startup:under_triton"}


def launch(
    command: Sequence[str],
    *,
    cann: str | None = None,
    soc: str | None = None,
    triton: bool = False,
    devices: int | None = None,
    ranks: int | None = None,
    rank_timeout: float | None = None,
) -> int:
    """Become a command whose Python processes have a virtual NPU as soon as they import torch_npu, or torch.

    With ranks, run it once for each, and return the exit code of the first that failed, or 0.

    Parameters
    ----------
    command : sequence of str
        A program and its arguments: ``python script.py``, ``pytest tests``, anything that starts Python in the end.
    cann : str, optional
        Name of a CANN profile: operators follow it, and torch_npu is told its version.
    soc : str, optional
        Name of the chip that torch_npu is told. Kernels do not depend on it.
    triton : bool, optional
        Whether Triton's interpreter runs kernels on the device.
    devices : int, optional
        Devices that each process has; by default as many as there are ranks, or one.
    ranks : int, optional
        Processes that the command is run as.
    rank_timeout : float, optional
        Seconds after which a rank that waits for another one gives up.

    Raises
    ------
    UsageError
        If there is no such program, profile or chip, or another number of devices or ranks than can be.
    TargetUnavailable
        If the virtual NPU cannot run here.
    """
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"npudiff virtual: no program {command[0]!r}")
    for option, number in (("--devices", devices), ("--ranks", ranks)):
        if number is not None and not 1 <= number <= MOST:
            raise UsageError(f"{option} {number}: expected 1 to {MOST}")
    try:
        build(package_folder("torch_npu"), package_folder("torch"), version_of_torch_npu())
        if triton:
            check()
    except (VirtualNpuUnavailable, CannotBuild) as error:
        raise TargetUnavailable(str(error)) from error
    environment = {**hooked(of_the_user(os.environ), HOOKS), "TASK_QUEUE_ENABLE": "0", **_described(cann, soc)}
    if devices or ranks:
        environment[DEVICES] = str(devices or ranks)
    if rank_timeout is not None:
        environment[RANK_TIMEOUT] = f"{rank_timeout:g}"
    if triton:
        environment = {**hooked(environment, TRITON_HOOKS), ASKED: "1", INTERPRET: "1"}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # torch loads torch_npu, as it does where there is a card
    sys.stdout.flush()
    sys.stderr.flush()
    if ranks is not None:
        return run_ranks([program, *command[1:]], ranks, environment)
    return os.execve(program, list(command), environment)  # noqa: S606 - the user's own command


def _described(cann: str | None, soc: str | None) -> dict[str, str]:
    """Return the environment in which the device says what it is."""
    described = {}
    if cann is not None:
        from npudiff.device.simulator.profiles import PROFILES  # noqa: PLC0415 - imports torch

        if cann not in PROFILES:
            raise unknown("CANN profile", cann, PROFILES)
        described = {CANN: cann, CANN_VERSION: PROFILES[cann].version}
    if soc is not None:
        if not SOC_NAME.fullmatch(soc):
            raise UsageError(f"--soc {printable(soc)}: the name of a chip is like Ascend910B3 or Ascend910_9391")
        described[SOC] = soc
    return described
