"""Triton on the virtual NPU: its interpreter runs kernels on the device's memory.

::

    import npudiff.device.virtual

    npudiff.device.virtual.enable()
    npudiff.device.virtual.triton.enable()

    import triton

Or, without a change to a script: ``npudiff virtual --triton -- python script.py``. A process that asks for neither has
Triton as it is. Importing this package imports neither torch nor Triton.

What it adds to Triton's own interpreter is a driver of an NPU, ``triton.language.extra.cann``, blocks of any size,
bfloat16 that rounds, launches that a graph captures, and errors where an address is not the device's.
"""

from __future__ import annotations

import os
import sys

from npudiff.device.virtual.loading import VirtualNpuUnavailable, package_folder
from npudiff.run.on_import import is_hooked

__all__ = ["ASKED", "INTERPRET", "check", "enable"]

ASKED = "NPUDIFF_VIRTUAL_TRITON"
"""Variable by which a process asks for Triton when it gets its virtual NPU."""
INTERPRET = "TRITON_INTERPRET"
"""Triton's own variable, which it reads as soon as it is imported."""

_OLDEST = (3, 7)


def enable() -> None:
    """Import Triton, and let it run kernels on the virtual NPU. Idempotent.

    Call it before anything imports Triton.

    Raises
    ------
    VirtualNpuUnavailable
        If Triton is missing or too old, or has been imported already; the message is one line.
    """
    check()
    if is_hooked(os.environ, "triton"):
        return  # as soon as somebody imports it
    if "triton" in sys.modules:
        if "npudiff.device.virtual.triton.interpreter" in sys.modules:
            return
        raise VirtualNpuUnavailable("triton has been imported without the virtual NPU: enable it before that")
    os.environ[INTERPRET] = "1"
    from npudiff.device.virtual.triton.interpreter import install  # noqa: PLC0415 - imports Triton

    install()


def check() -> None:
    """Look whether Triton is there and new enough, without importing it.

    Raises
    ------
    VirtualNpuUnavailable
        If not, or if a package is missing that it needs here.
    """
    import importlib.metadata  # noqa: PLC0415 - only where somebody asks

    for name in ("triton", "ml_dtypes"):
        try:
            package_folder(name)
        except VirtualNpuUnavailable:
            raise VirtualNpuUnavailable(f"{name} is not installed: pip install 'npudiff[triton]'") from None
    version = importlib.metadata.version("triton")
    numbers = tuple(int(number) for number in version.split("+")[0].split(".")[:2])
    if numbers < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise VirtualNpuUnavailable(f"triton {version} is too old for the virtual NPU, which needs {oldest}")
