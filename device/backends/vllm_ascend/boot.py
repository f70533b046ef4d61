"""Importing vllm-ascend where there is no card, and no library of its own operators.

The device is there before anything of vllm. vllm-ascend's operators in C++ are stood in for (``operators.py``) where
it is virtual.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

from npudiff.device import virtual
from npudiff.device.backends.operators import operators_of
from npudiff.device.backends.vllm_ascend import operators
from npudiff.model.backend import BackendUnavailable, Booted

DEVICE_TYPE = "A2"
"""What the build of a checkout would write down for an Ascend 910B."""

SETTINGS = {"VLLM_LOGGING_LEVEL": "ERROR"}
"""Environment that vllm reads while it is imported, where nothing else is said."""

FIRST = ("vllm_ascend.ops.fused_moe.fused_moe", "vllm_ascend.attention.attention_v1")
"""In this order: the other way round vllm-ascend imports itself in a circle."""


WITH_TRITON: list[ModuleType] = []
"""Modules that found Triton and have two ways, beside a virtual NPU."""


def boot(checkout: Path | None) -> Booted:
    """Import vllm-ascend.

    Parameters
    ----------
    checkout : pathlib.Path or None
        Folder of its repository, or one that has the package ``vllm_ascend``; None for what is installed.

    Raises
    ------
    BackendUnavailable
        If there is none, or no vllm, or it does not import.
    """
    if importlib.util.find_spec("vllm") is None:
        raise BackendUnavailable("--backend vllm_ascend: vllm is not installed (docs/test-a-backend.md says how)")
    if checkout is not None:
        folder = checkout.expanduser().resolve()
        if not (folder / "vllm_ascend").is_dir():
            raise BackendUnavailable(f"--backend vllm_ascend={checkout}: no folder vllm_ascend in it")
        sys.path.insert(0, str(folder))
        _stand_in_for_build(folder)
    elif importlib.util.find_spec("vllm_ascend") is None:
        raise BackendUnavailable(
            "--backend vllm_ascend: it is not installed; install it, or name a checkout, vllm_ascend=PATH"
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    triton = _interpreted_triton()
    try:
        package = importlib.import_module("vllm_ascend")
        for module in FIRST:
            importlib.import_module(module)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"--backend vllm_ascend: it does not import beside vllm {_vllm()}: {why}") from error
    origin = Path(str(package.__file__)).parent
    calls = Counter[str]()
    told: tuple[str, ...] = (f"{operators.SPACE}: as its library has them",)
    if virtual.enabled():
        calls, told = operators.stand_in(origin)
    _choose_without_triton()
    notes = (f"beside vllm {_vllm()}", *told, *triton)
    return Booted(_version(checkout), origin, lambda: dict(sorted(calls.items())), lambda: operators_of(origin), notes)


def _interpreted_triton() -> tuple[str, ...]:
    """Let Triton's interpreter run kernels where the device is virtual; return why it does not, if so."""
    if not virtual.enabled():
        return ()
    try:
        virtual.triton.enable()
    except virtual.VirtualNpuUnavailable as error:
        return (f"Triton kernels do not run: {error}",)
    return ()


def _choose_without_triton() -> None:
    """Let modules that found Triton take their other ways, where the device is virtual: it is an option of a case."""
    if not virtual.enabled():
        return
    for module in [one for name, one in sys.modules.items() if name.partition(".")[0] in ("vllm", "vllm_ascend")]:
        if vars(module).get("HAS_TRITON") is True:
            vars(module)["HAS_TRITON"] = False
            WITH_TRITON.append(module)


def _stand_in_for_build(folder: Path) -> None:
    """Give a checkout that was not built what its build writes: for which chip it is."""
    if (folder / "vllm_ascend" / "_build_info.py").is_file():
        return
    info = ModuleType("vllm_ascend._build_info")
    info.__spec__ = importlib.machinery.ModuleSpec(info.__name__, None)
    vars(info)["__device_type__"] = DEVICE_TYPE
    sys.modules[info.__name__] = info


def _vllm() -> str:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout"


def _version(checkout: Path | None) -> str:
    if checkout is not None:
        return "of a checkout"
    try:
        return importlib.metadata.version("vllm_ascend")
    except importlib.metadata.PackageNotFoundError:
        return "of a folder"
