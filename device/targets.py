"""Where implementations run: the CPU simulator, a virtual NPU, or hardware."""

from __future__ import annotations

import importlib.util
import os

from npudiff.errors import unknown
from npudiff.model.implementation import Target, TargetUnavailable

HCCL = "hccl"
"""The backend of ``torch.distributed`` on an NPU."""


def sim(cann: str | None) -> Target:
    """CPU tensors; ``torch.ops.npu.*`` run on the simulator's kernels, as the CANN profile says.

    Raises
    ------
    ValueError
        If there is no profile of this name.
    """
    from npudiff.device import simulator  # noqa: PLC0415 - torch is imported when a target is chosen
    from npudiff.device.graphs import recorded  # noqa: PLC0415

    name = _profile(cann)
    simulator.install()
    return Target("sim", "cpu", name, lambda: simulator.use_profile(name), other_canns=_others(name), capture=recorded)


def virtual(cann: str | None) -> Target:
    """The real torch_npu on host memory: ``npu:0`` tensors, the simulator's kernels, as the CANN profile says.

    Raises
    ------
    TargetUnavailable
        If torch_npu is not installed or does not fit, or the stand-in for CANN cannot be built.
    ValueError
        If there is no profile of this name.
    """
    from npudiff.device import simulator  # noqa: PLC0415 - torch is imported when a target is chosen
    from npudiff.device.graphs import captured  # noqa: PLC0415
    from npudiff.device.virtual import VirtualNpuUnavailable, enable  # noqa: PLC0415
    from npudiff.device.virtual.loading import CANN_VERSION  # noqa: PLC0415

    name = _profile(cann)
    os.environ.setdefault(CANN_VERSION, simulator.PROFILES[name].version)  # torch_npu asks for it once
    try:
        enable()
    except VirtualNpuUnavailable as error:
        raise TargetUnavailable(str(error)) from error
    import torch  # noqa: PLC0415

    synchronize = torch.get_device_module("npu").synchronize
    return Target(
        "virtual",
        "npu:0",
        name,
        lambda: simulator.use_profile(name),
        synchronize,
        other_canns=_others(name),
        on_host=True,
        capture=captured,
        collectives=HCCL,
    )


def _profile(cann: str | None) -> str:
    """Return the name of a CANN profile: the one that was asked for, if there is one of this name."""
    from npudiff.device import simulator  # noqa: PLC0415 - torch is imported when a target is chosen

    name = cann or simulator.DEFAULT_PROFILE
    if name not in simulator.PROFILES:
        raise ValueError(str(unknown("CANN profile", name, simulator.PROFILES)))
    return name


def _others(name: str) -> tuple[str, ...]:
    """Return the names of the other CANN profiles."""
    from npudiff.device import simulator  # noqa: PLC0415 - torch is imported when a target is chosen

    return tuple(other for other in simulator.PROFILES if other != name)


def npu(cann: str | None) -> Target:
    """Hardware, through torch_npu.

    The CANN version is the device's own; asking for another one is an error, since a profile is the simulator's.

    Raises
    ------
    TargetUnavailable
        If torch_npu is not installed, does not import, or sees no device.
    ValueError
        If a CANN profile is asked for.
    """
    import contextlib  # noqa: PLC0415

    if importlib.util.find_spec("torch_npu") is None:
        raise TargetUnavailable("torch_npu is not installed: pip install 'npudiff[npu]', on a machine with CANN")
    try:
        import torch  # noqa: PLC0415
        import torch_npu  # noqa: F401, PLC0415
    except (ImportError, OSError, RuntimeError) as error:
        raise TargetUnavailable(f"torch_npu does not import: {error}; run 'npudiff doctor'") from error
    from npudiff.device.virtual import enabled  # noqa: PLC0415

    if enabled():
        raise TargetUnavailable("torch_npu runs on the virtual NPU in this process: ask for --target virtual")
    if not torch.get_device_module("npu").is_available():
        raise TargetUnavailable("torch_npu sees no NPU: see npu-smi info and ASCEND_RT_VISIBLE_DEVICES")
    if cann is not None:
        raise ValueError(f"--cann {cann} is a profile of the simulator; the npu target has the CANN that it has")
    from npudiff.device.graphs import captured  # noqa: PLC0415

    module = torch.get_device_module("npu")
    return Target(
        "npu",
        "npu:0",
        _cann_version(),
        contextlib.nullcontext,
        module.synchronize,
        capture=captured,
        collectives=HCCL,
        devices=lambda: int(module.device_count()),
    )


def _cann_version() -> str:
    """The version of the installed CANN toolkit, as torch_npu reports it."""
    try:
        from torch_npu.utils.collect_env import get_cann_version  # noqa: PLC0415
    except ImportError:
        return "unknown"
    return str(get_cann_version())
