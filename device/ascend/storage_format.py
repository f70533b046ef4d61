"""Storage formats: casts, and what lies in a device's memory, of which torch shows only the logical order."""

from __future__ import annotations

import ctypes

import torch

from npudiff import Target

ND, FRACTAL_NZ = 2, 29
"""Formats, with the numbers of ``torch_npu.Format``."""

_DEVICE_TO_HOST = 2  # ACL_MEMCPY_DEVICE_TO_HOST of CANN's acl_rt.h


def format_cast(tensor: torch.Tensor, acl_format: int, target: Target) -> torch.Tensor:
    """Cast with npu_format_cast, in a program that allows internal formats."""
    allow_internal_formats(target)
    cast: torch.Tensor = torch.ops.npu.npu_format_cast(tensor, acl_format)
    return cast


def allow_internal_formats(target: Target) -> None:
    """Let casts to FRACTAL_NZ give FRACTAL_NZ, for the whole process, as sglang and vllm-ascend do when they start.

    By default torch_npu gives a base format instead, with a warning. The simulator has a choice of its profile for it.
    """
    if target.device != "cpu":
        torch.get_device_module("npu").config.allow_internal_format = True


def physical_storage(tensor: torch.Tensor, target: Target) -> torch.Tensor:
    """Return a copy of the whole storage of a tensor, on the host.

    Returns
    -------
    torch.Tensor
        ``[elements of the storage]``, of the dtype of the tensor, padding of its format included.

    Raises
    ------
    RuntimeError
        If the device's runtime cannot copy.
    """
    if target.device == "cpu":
        from npudiff.device.simulator.cache.physical import physical  # noqa: PLC0415 - the simulator is not needed elsewhere

        return physical(tensor).flatten()
    target.synchronize()
    return _copied_from_device(tensor.untyped_storage()).view(tensor.dtype)


def _copied_from_device(storage: torch.UntypedStorage) -> torch.Tensor:
    """Copy the bytes of a storage past torch_npu, whose own ``UntypedStorage.cpu()`` undoes the format.

    torch_npu makes the storage of a tensor in FRACTAL_NZ as large as its tiles are, so its bytes are all there. This
    has not been run on hardware.
    """
    count = storage.nbytes()
    host = torch.empty(count, dtype=torch.uint8)
    copy = ctypes.CDLL("libascendcl.so").aclrtMemcpy
    copy.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    status = copy(host.data_ptr(), count, storage.data_ptr(), count, _DEVICE_TO_HOST)
    if status:
        raise RuntimeError(f"aclrtMemcpy of {count} bytes to the host failed with error {status}")
    return host
