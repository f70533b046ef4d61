"""What is done when a program that ``npudiff virtual --triton`` runs imports Triton."""

from __future__ import annotations

import os
from types import ModuleType

from npudiff.device.virtual.triton import INTERPRET
from npudiff.run.on_import import Execute


def under_triton(execute: Execute) -> Execute:
    """Have Triton interpret kernels, and let its interpreter know the device once Triton has been executed."""
    os.environ[INTERPRET] = "1"

    def executed(module: ModuleType) -> None:
        execute(module)
        from npudiff.device.virtual.triton.interpreter import install  # noqa: PLC0415 - imports Triton

        install()

    return executed
