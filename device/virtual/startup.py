"""What is done when a program that ``npudiff virtual`` runs imports torch_npu, which torch does by itself."""

from __future__ import annotations

import os
from types import ModuleType

from npudiff.device.virtual import VirtualNpuUnavailable, enable
from npudiff.device.virtual.loading import CANN, stand_in, without_the_word_that_cann_is_missing
from npudiff.run.on_import import Execute


def under_torch_npu(execute: Execute) -> Execute:
    """Load the stand-in for CANN, and register operators once torch_npu has been executed."""
    try:
        stand_in()
    except VirtualNpuUnavailable as error:
        raise ImportError(f"npudiff virtual: {error}", name="torch_npu") from error

    def executed(module: ModuleType) -> None:
        with without_the_word_that_cann_is_missing():
            execute(module)
        enable()
        from npudiff.device.simulator.profiles import DEFAULT_PROFILE, use_by_default  # noqa: PLC0415 - imports torch

        use_by_default(os.environ.get(CANN, DEFAULT_PROFILE))

    return executed
