"""The machine of a gate. Another process asks the device, since forks of a process that has used it are unsafe."""

from __future__ import annotations

import subprocess  # this very interpreter
import sys
from collections.abc import Iterable

from npudiff.gate.known import KnownIssue
from npudiff.gate.versions import Machine
from npudiff.model.implementation import Target
from npudiff.run.environment import version_of

SECONDS = 300.0
"""A first contact with a card may take minutes."""

_ASK = "import torch, torch_npu; print(torch.npu.get_device_name(0))"


def machine_of(target: Target, issues: Iterable[KnownIssue]) -> Machine:
    """Return what is here; the chip is asked for only if an issue names one.

    A simulator has neither torch_npu nor a chip, whatever is installed: issues that name one are not known on it.
    """
    with_package = target.name != "sim"
    asks = target.name == "npu" and any(issue.versions.soc for issue in issues)
    return Machine(
        target=target.name,
        cann=target.cann,
        torch_npu=(version_of("torch_npu") or "") if with_package else "",
        soc=_chip() if asks else "",
    )


def _chip() -> str:
    """Name of the first visible chip, empty if it does not say."""
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and a constant
            [sys.executable, "-c", _ASK], capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[-1].strip() if done.returncode == 0 and lines else ""
