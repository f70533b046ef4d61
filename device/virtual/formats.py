"""Casts between storage formats on the virtual NPU: the elements really change places in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from npudiff.device.simulator.cache import format_cast as simulated
from npudiff.device.simulator.cache.formats import BASE_FORMATS
from npudiff.device.simulator.profiles import active_profile, use_profile
from npudiff.device.virtual.calls import signature_of
from npudiff.device.virtual.dispatch import overload_of
from npudiff.device.virtual.kernels import device_kernel
from npudiff.device.virtual.memory import in_tiles, storage_format

Cast = Callable[..., Tensor]


def format_cast(rename: Cast) -> Cast:
    """Return the kernel of ``npu_format_cast``.

    Parameters
    ----------
    rename : callable
        torch_npu's own kernel: where both formats are base formats it renames the storage, without device code.
    """
    signature = signature_of(overload_of("npu::npu_format_cast"))
    formatted = signature.arguments[:1]
    convert: Cast = device_kernel(signature, simulated.format_cast, formatted)
    convert_to_base: Cast = device_kernel(signature, _replaced, formatted)

    def kernel(
        input: Tensor,
        acl_format: int,
        *,
        customize_dtype: int | None = None,
        input_dtype: int | None = None,
    ) -> Tensor:
        if storage_format(input) in BASE_FORMATS and acl_format in BASE_FORMATS:
            rename(input, acl_format)
            return input
        if storage_format(input) == acl_format:
            return input
        made = convert if _is_allowed(acl_format) else convert_to_base
        return made(input, acl_format, customize_dtype=customize_dtype, input_dtype=input_dtype)

    return kernel


def _replaced(
    input: Tensor, acl_format: int, *, customize_dtype: int | None = None, input_dtype: int | None = None
) -> Tensor:
    """Return what a cast gives where the program does not allow torch_npu's internal formats."""
    with use_profile(replace(active_profile(), internal_format="replaced_by_base_format")):
        return simulated.format_cast(input, acl_format, customize_dtype=customize_dtype, input_dtype=input_dtype)


def _is_allowed(acl_format: int) -> bool:
    """Whether torch_npu's configuration allows a format; by default only base formats, which a cast gives instead."""
    import torch_npu  # noqa: PLC0415 - imported already

    return acl_format in BASE_FORMATS or torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"enable"


def format_cast_like(cast: Cast) -> Cast:
    """Return the kernel of ``npu_format_cast.Tensor``."""

    def kernel(input: Tensor, dst: Tensor, **options: int | None) -> Tensor:
        return cast(input, int(storage_format(dst)), **options)

    return kernel


def format_cast_in_place(cast: Cast) -> Cast:
    """Return the kernel of ``npu_format_cast_.acl_format``: the tensor gets the storage of its cast."""

    def kernel(input: Tensor, acl_format: int, **options: int | None) -> Tensor:
        made = cast(input, acl_format, **options)
        if made is not input:
            with torch.no_grad():
                input.set_(made.untyped_storage(), made.storage_offset(), made.size(), made.stride())
        return input

    return kernel


def format_cast_in_place_from(cast_in_place: Cast) -> Cast:
    """Return the kernel of ``npu_format_cast_``, which copies values across formats."""

    def kernel(input: Tensor, src: Tensor, **options: int | None) -> Tensor:
        differ = storage_format(input) != storage_format(src) and (in_tiles(input) or in_tiles(src))
        if differ and active_profile().format_cast_from_tensor == "takes_format":
            return cast_in_place(input, int(storage_format(src)), **options)
        with torch.no_grad():
            return input.copy_(src)

    return kernel
