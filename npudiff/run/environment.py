"""Installed packages and CANN libraries, found without importing torch or torch_npu."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
from pathlib import Path

from npudiff.run.on_import import is_hooked

CANN_LIBRARY = "libhccl.so"
"""The first library of CANN that torch_npu fails to load without."""


def torch_npu_installed() -> bool:
    """Whether torch_npu can be found."""
    return importlib.util.find_spec("torch_npu") is not None


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cann_library() -> str | None:
    """Return where CANN's communication library is, or None if the loader would not find it."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if home:
        folders.append(Path(home) / "lib64")
    for folder in folders:
        if (folder / CANN_LIBRARY).exists():
            return str(folder / CANN_LIBRARY)
    return ctypes.util.find_library("hccl")


def autoload_would_fail() -> bool:
    """Whether ``import torch`` would load torch_npu and fail, because CANN is missing.

    Under ``npudiff virtual`` it does not fail: a hook has the stand-in for CANN loaded before.
    """
    return torch_npu_installed() and cann_library() is None and not is_hooked(os.environ, "torch_npu")
