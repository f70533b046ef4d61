"""Running somebody's program, unchanged, where ``npu`` is the virtual device."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from npudiff.device.virtual.build import CannotBuild, build
from npudiff.device.virtual.loading import VirtualNpuUnavailable, package_folder, version_of_torch_npu
from npudiff.errors import UsageError
from npudiff.model.implementation import TargetUnavailable
from npudiff.run.on_import import hooked

HOOKS = {"torch_npu": "npudiff.device.virtual.startup:under_torch_npu"}


def launch(command: Sequence[str]) -> NoReturn:
    """Become a command whose Python processes have a virtual NPU as soon as they import torch_npu, or torch.

    Parameters
    ----------
    command : sequence of str
        A program and its arguments: ``python script.py``, ``pytest tests``, anything that starts Python in the end.

    Raises
    ------
    UsageError
        If there is no such program.
    TargetUnavailable
        If the virtual NPU cannot run here.
    """
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"npudiff virtual: no program {command[0]!r}")
    try:
        build(package_folder("torch_npu"), package_folder("torch"), version_of_torch_npu())
    except (VirtualNpuUnavailable, CannotBuild) as error:
        raise TargetUnavailable(str(error)) from error
    environment = {**hooked(os.environ, HOOKS), "TASK_QUEUE_ENABLE": "0"}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # torch loads torch_npu, as it does where there is a card
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(command), environment)  # noqa: S606 - the user's own command
