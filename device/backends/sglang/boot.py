"""Importing sglang where there is no card: which packages are stood in for, and in which order it goes.

The device is there before anything of sglang. Only packages that sglang imports for other hardware, for tokenisers and
for pictures are stood in for; nothing of sglang itself is changed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from npudiff.device import virtual
from npudiff.device.backends.operators import operators_of
from npudiff.device.backends.stubs import StubModule, Stubs
from npudiff.model.backend import BackendUnavailable, Booted

MISSING = (
    # models and their processors
    "sentencepiece", "mistral_common", "torchvision", "torchaudio", "timm", "scipy", "soundfile", "datasets",
    "xgrammar", "outlines", "llguidance", "modelscope", "decord", "av", "tiktoken", "anthropic", "openai_harmony",
    "numba", "blobfile", "easydict",
    # kernels for other hardware
    "sgl_kernel", "flashinfer", "flash_attn", "deep_ep", "triton_kernels", "tvm_ffi", "cuda", "kernels", "torchao",
    "torch_memory_saver", "nvtx", "humming", "quack", "tilelang", "cutlass", "deep_gemm", "flash_mla", "nixl",
    "mooncake", "tml_renderers",
    # of CANN, and kernels for it: see KERNELS
    "acl", "torchair", "sgl_kernel_npu",
)  # fmt: skip
"""Packages that are stood in for where they are not installed."""

ABSENT = ("sgl_kernel_npu.norm.gemma_rmsnorm",)
"""Modules without which sglang takes torch_npu's operator, as it does on cards before the Ascend 950."""

ALWAYS = ("torchair",)
"""Those that are stood in for beside a virtual NPU in any case: torch_npu's imports and then fails without CANN."""

SETTINGS = {"ASCEND_USE_FIA": "1"}
"""Environment that sglang reads while it is imported, where nothing else is said."""


KERNELS = "NPUDIFF_SGL_KERNEL_NPU"
"""Environment variable that names a checkout of sgl-kernel-npu: there is no package of it to install. Its operators in
C++ are the simulator's, its Triton kernels are its own. Without it, what calls one says so."""


LATER = ("sgl_kernel_npu.fla.fused_sigmoid_gating_recurrent_decode_optimized",)
"""Modules of sgl-kernel-npu that sglang imports beside others, and that a checkout may be too old for."""


_ASKED, _ARCHITECTURE = 601, 2201
"""What sglang asks of the chip, and the architecture of an Ascend 910B."""


def boot(checkout: Path | None) -> Booted:
    """Import sglang's Ascend backend.

    Parameters
    ----------
    checkout : pathlib.Path or None
        Folder of sglang's repository, or one that has the package ``sglang``; None for what is installed.

    Raises
    ------
    BackendUnavailable
        If there is none, or it does not import.
    """
    if checkout is not None:
        sys.path.insert(0, str(_folder_of_package(checkout)))
    elif importlib.util.find_spec("sglang") is None:
        raise BackendUnavailable(
            "--backend sglang: it is not installed: pip install --no-deps sglang, beside 'npudiff[npu,sglang]' with "
            "what it imports; or name a checkout, sglang=PATH"
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    notes = _interpreted_triton()
    with contextlib.suppress(ImportError):  # it puts its own torchair among the modules, in whose place a stub comes
        importlib.import_module("torch_npu.dynamo")
    always = ALWAYS if virtual.enabled() else ()
    here = {*always, *(["sgl_kernel_npu"] if KERNELS in os.environ else [])}  # not looked for: looking imports some
    stubs = Stubs([name for name in MISSING if name not in here], always, ABSENT)
    stubs.install()
    for name in always:  # torch_npu puts its own there as soon as torch._dynamo is imported, unless one is there
        importlib.import_module(name)
    if virtual.enabled() and stubs.standing_in_for("acl"):
        _answer_what_chip(stubs)
    _find_kernels(stubs)
    try:
        sglang = importlib.import_module("sglang")
        importlib.import_module("sglang.srt.hardware_backend.npu.attention.ascend_backend")
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"--backend sglang: it does not import: {why}") from error
    origin = Path(str(sglang.__file__)).parent
    return Booted(_version(sglang), origin, lambda: stubs.touched, lambda: operators_of(origin), notes)


def _interpreted_triton() -> tuple[str, ...]:
    """Let Triton's interpreter run kernels where the device is virtual; return why it does not, if so."""
    if not virtual.enabled():
        return ()
    try:
        virtual.triton.enable()
    except virtual.VirtualNpuUnavailable as error:
        return (f"Triton kernels do not run: {error}",)
    return ()


def _answer_what_chip(stubs: Stubs) -> None:
    """Let pyACL, which is not here, say which architecture the chip has: sglang asks before it takes a newer one's way.

    All else that is asked of it is still refused.
    """
    runtime: Any = stubs.named("acl.rt")
    runtime.get_device_info = lambda _device, what: (_ARCHITECTURE, 0) if what == _ASKED else stubs.called("acl.rt")
    module: Any = importlib.import_module("acl")
    module.rt = runtime


def _folder_of_package(checkout: Path) -> Path:
    for folder in (checkout / "python", checkout):
        if (folder / "sglang").is_dir():
            return folder.resolve()
    raise BackendUnavailable(f"--backend sglang={checkout}: no folder sglang or python/sglang in it")


def _version(sglang: ModuleType) -> str:
    return str(getattr(sglang, "__version__", "") or importlib.metadata.version("sglang"))


def _find_kernels(stubs: Stubs) -> None:
    """Let modules of a checkout of sgl-kernel-npu be imported without its package, which loads a library for a card.

    Those that it is too old for are stood in for.

    Raises
    ------
    BackendUnavailable
        If the checkout has no such package.
    """
    if KERNELS not in os.environ:
        return
    folder = Path(os.environ[KERNELS], "python", "sgl_kernel_npu", "sgl_kernel_npu").resolve()
    if not folder.is_dir():
        raise BackendUnavailable(
            f"{KERNELS}={os.environ[KERNELS]}: no folder python/sgl_kernel_npu/sgl_kernel_npu in it"
        )
    package = ModuleType("sgl_kernel_npu")
    package.__path__ = [str(folder)]
    package.__spec__ = importlib.machinery.ModuleSpec("sgl_kernel_npu", None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules["sgl_kernel_npu"] = package
    for name in LATER:
        if not folder.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file():
            sys.modules[name] = StubModule(name, stubs)
