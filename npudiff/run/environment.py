"""Installed packages and CANN libraries, found without importing torch or torch_npu."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from npudiff.run.on_import import is_hooked

CANN_LIBRARY = "libhccl.so"
"""The first library of CANN that torch_npu fails to load without."""


LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"

_quietened: list[str] = []


def quieten_torch() -> None:
    """Have torch show errors in C++ only, unless somebody has said otherwise, in this process and those it starts."""
    if LOG_LEVEL not in os.environ:
        os.environ[LOG_LEVEL] = "ERROR"
        _quietened.append(LOG_LEVEL)


def of_the_user(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a program of the user's, which shows what torch warns of."""
    return {name: value for name, value in environment.items() if name not in _quietened}


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
_MOST_KEPT, _LARGEST_KEPT = 2**28, 2**26


def keep_freed_memory() -> None:
    """Have this process, and what it forks, keep memory of tensors that are gone, up to 256 MiB, for the next ones.

    A reference makes dozens of tensors of some megabytes. With glibc's defaults each is mapped, cleared page by page
    and unmapped, which takes as long as computing it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        with contextlib.suppress(AttributeError):  # of another libc
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
            libc.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


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
