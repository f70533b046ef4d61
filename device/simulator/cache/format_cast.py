"""``npu_format_cast`` in its four forms, and ``get_npu_format``.

Source: Ascend/pytorch, ``torch_npu/csrc/aten/common/FormatCastKernelNpu.cpp``, as it runs on A2 and A3 with CANN
before 9.1: without aclnn, through ``npu_format_cast_impl``. Casts between base formats and FRACTAL_NZ are
simulated. The values, sizes and strides of a tensor never change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.cache.formats import (
    BASE_FORMATS,
    Format,
    StorageFormat,
    base_tensor,
    format_of,
    note,
    noted_format,
)
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

_CAST = ArgumentChecks("npu_format_cast", default=ErrorCode.TILING)
_CAST_IN_PLACE = ArgumentChecks("npu_format_cast_", default=ErrorCode.TILING)


def format_cast(
    input: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """Return a tensor with the same values in another storage format.

    Parameters
    ----------
    input : Tensor
        Of any shape; of a view, the whole storage is cast.
    acl_format : int
        A number of :class:`Format`.
    customize_dtype, input_dtype : int, optional
        Not supported by CANN before 9.1, and not simulated.

    Returns
    -------
    Tensor
        ``input`` itself if it has the format, or if both formats are base formats: then the storage only gets
        the other name. Else a tensor with a storage of its own.

    Raises
    ------
    OperatorRejected
        No such format, or ``customize_dtype`` or ``input_dtype`` where the profile does not have them.
    NotSimulated
        A format that is neither a base format nor FRACTAL_NZ.
    """
    target = _format(_CAST, acl_format)
    if _cast_by_name(_CAST, input, target):
        return input
    _check_dtypes(_CAST, customize_dtype, input_dtype)
    return _cast(_CAST, input, target)


def format_cast_like(
    input: Tensor,
    dst: Tensor,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """Return a tensor with the values of ``input`` in the format of ``dst``, as :func:`format_cast` does."""
    return format_cast(input, format_of(dst), customize_dtype=customize_dtype, input_dtype=input_dtype)


def format_cast_in_place(
    input: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """Give a tensor another storage format, and return it.

    Parameters and errors are those of :func:`format_cast`. Where that returns a new tensor, ``input`` gets its
    storage, and whoever shared the old storage no longer sees writes.
    """
    target = _format(_CAST_IN_PLACE, acl_format)
    if _cast_by_name(_CAST_IN_PLACE, input, target):
        return input
    _check_dtypes(_CAST_IN_PLACE, customize_dtype, input_dtype)
    return _become(input, _cast(_CAST_IN_PLACE, input, target))


def format_cast_in_place_from(
    input: Tensor,
    src: Tensor,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """Copy the values of ``src`` into a tensor, across formats, and return it.

    Parameters
    ----------
    input : Tensor
        Written; by default it keeps its format and its storage.
    src : Tensor
        Of the same shape and dtype; if the formats are equal, of any that ``copy_`` takes.
    customize_dtype, input_dtype : int, optional
        As in :func:`format_cast`.

    Raises
    ------
    OperatorRejected
        As :func:`format_cast`.
    NotSimulated
        Different formats, and shapes or dtypes that differ too.
    """
    with torch.no_grad():
        if format_of(input) == format_of(src):
            return input.copy_(src)
        if active_profile().format_cast_from_tensor == "takes_format":
            return format_cast_in_place(input, format_of(src), customize_dtype=customize_dtype, input_dtype=input_dtype)
        _check_dtypes(_CAST_IN_PLACE, customize_dtype, input_dtype)
        if input.shape != src.shape or input.dtype != src.dtype:
            given = f"{src.dtype} {list(src.shape)} in another format"
            raise _CAST_IN_PLACE.not_simulated("src", given, f"{input.dtype} {list(input.shape)}, as input")
        return input.copy_(src)


def get_format(input: Tensor) -> int:
    """Return the number of the format of a tensor's storage."""
    return int(format_of(input))


def format_cast_meta(x: Tensor, /) -> Tensor:
    """Return an empty tensor with the sizes and strides of ``input``."""
    return x.new_empty_strided(x.shape, x.stride())


def format_cast_in_place_meta(x: Tensor, /) -> Tensor:
    """Return ``input``."""
    return x


def _format(check: ArgumentChecks, number: int) -> Format:
    if number not in set(Format) or number == Format.UNDEFINED:
        allowed = ", ".join(f"{int(known)} {known.name}" for known in Format if known != Format.UNDEFINED)
        raise check.rejected("acl_format", number, allowed, ErrorCode.WRAPPER)
    target = Format(number)
    if target not in BASE_FORMATS and target is not Format.FRACTAL_NZ:
        simulated = ", ".join(f"{int(known)} {known.name}" for known in sorted({*BASE_FORMATS, Format.FRACTAL_NZ}))
        raise check.not_simulated("acl_format", f"{number} {target.name}", simulated)
    return target


def _cast_by_name(check: ArgumentChecks, tensor: Tensor, target: Format) -> bool:
    """Do what needs no storage: nothing, or another name for a base format. Say whether that was all."""
    current = format_of(tensor)
    if current == target:
        return True
    if current in BASE_FORMATS and target in BASE_FORMATS:
        note(tensor, replace(_described(check, tensor), format=target))
        return True
    return False


def _check_dtypes(check: ArgumentChecks, customize_dtype: int | None, input_dtype: int | None) -> None:
    """Refuse the two options of aclnn: torch_npu hands ``input_dtype`` on as ``customize_dtype`` too."""
    for name, value in (("customize_dtype", customize_dtype), ("input_dtype", input_dtype)):
        if value is None:
            continue
        if active_profile().format_cast_customize_dtype == "rejected":
            raise check.rejected(name, value, "None, before CANN 9.1", ErrorCode.WRAPPER)
        raise check.not_simulated(name, value, "None, the dtype of the tensor")


def _cast(check: ArgumentChecks, tensor: Tensor, target: Format) -> Tensor:
    """Copy the whole storage, note its new format, and return the part that the tensor is of it."""
    described = _described(check, tensor)
    if target is Format.FRACTAL_NZ and active_profile().internal_format == "replaced_by_base_format":
        target = Format.ND
    storage = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
    copy = tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    note(copy, replace(described, format=_new_format(target, len(described.sizes))))
    return copy


def _described(check: ArgumentChecks, tensor: Tensor) -> StorageFormat:
    """Return what is noted of a storage, or would be if torch_npu had made it for the tensor it was made for.

    Raises
    ------
    NotSimulated
        Torch does not remember that tensor: a part of a storage, taken in inference mode or detached.
    """
    noted = noted_format(tensor)
    if noted is not None:
        return noted
    base = base_tensor(tensor)
    # Axes in the order of memory: of a transposed tensor whose origin torch does not remember, its likely shape.
    base = base.permute(sorted(range(base.dim()), key=base.stride, reverse=True))
    if not base.is_contiguous() or base.numel() * base.itemsize != base.untyped_storage().nbytes():
        given = f"{list(tensor.shape)}, strides {tensor.stride()}, part of a storage of unknown shape"
        raise check.not_simulated("input", given, "tensors that own their storage, and views that know theirs")
    return StorageFormat(format_of(tensor), tuple(base.shape), base.dtype)


def _new_format(target: Format, rank: int) -> Format:
    """Return the format that a new storage really gets (``GuessStorageFormat``, ``GuessFormatUnit``)."""
    if target is Format.FRACTAL_NZ and rank < 2:
        return Format.ND
    if target is Format.ND and rank == 4:
        return Format.NCHW
    if (target is Format.NCHW and rank != 4) or (target is Format.NCDHW and rank not in (4, 5)):
        return Format.ND
    return Format.NCHW if target is Format.NCDHW and rank == 4 else target


def _become(tensor: Tensor, other: Tensor) -> Tensor:
    """Let a tensor have the storage of another one."""
    with torch.no_grad():
        tensor.set_(other.untyped_storage(), other.storage_offset(), other.shape, other.stride())
    return tensor
