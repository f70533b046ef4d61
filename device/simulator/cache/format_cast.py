"""``npu_format_cast`` in its four forms, and ``get_npu_format``.

Source: Ascend/pytorch, ``torch_npu/csrc/aten/common/FormatCastKernelNpu.cpp``, as it runs on A2 and A3: through
``npu_format_cast_impl``, and from CANN 9.1 on through aclnn for what that takes. Casts between base formats, FRACTAL_NZ
and formats of images and volumes are simulated. The values, sizes and strides of a tensor never change.
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
    base_format,
    base_tensor,
    format_of,
    note,
    noted_format,
)
from npudiff.device.simulator.cache.layouts import LAID_OUT, LAYOUTS
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

_CAST = ArgumentChecks("npu_format_cast", default=ErrorCode.TILING)
_CAST_IN_PLACE = ArgumentChecks("npu_format_cast_", default=ErrorCode.TILING)

_INT32 = 3
"""torch's number of int32, the only ``customize_dtype`` that is documented."""
_WORDS_OF_A_TILE = 8
"""Columns of tiles that it gives."""
_RANKS_OF_ACLNN = (2, 3)
"""Axes of what aclnn casts; of four, torch_npu's source says, it makes no tiles."""


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
        From CANN 9.1 on, 3 gives FRACTAL_NZ of int32 and float32 tiles of 8 columns, and not 16. Ignored where
        ``input`` is a view, or lies in another order and has gaps.

    Returns
    -------
    Tensor
        ``input`` itself if it has the format, or if both formats are base formats: then the storage only gets
        the other name. Else a tensor with a storage of its own.

    Raises
    ------
    OperatorRejected
        No such format, or none of so few axes; a cast between formats of matrices, images and volumes;
        ``customize_dtype`` or ``input_dtype`` before CANN 9.1.
    NotSimulated
        A format whose order is not simulated, or more axes than it orders; another ``customize_dtype``.
    """
    target = _format(_CAST, acl_format)
    if _cast_by_name(_CAST, input, target):
        return input
    return _cast(_CAST, input, target, customize_dtype, input_dtype)


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
    return _become(input, _cast(_CAST_IN_PLACE, input, target, customize_dtype, input_dtype))


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
        _width(_CAST_IN_PLACE, input, format_of(src), customize_dtype, input_dtype)
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
    if target not in BASE_FORMATS | LAID_OUT:
        simulated = ", ".join(f"{int(known)} {known.name}" for known in sorted(BASE_FORMATS | LAID_OUT))
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


def _cast(
    check: ArgumentChecks, tensor: Tensor, target: Format, customize_dtype: int | None, input_dtype: int | None
) -> Tensor:
    """Copy the whole storage, note its new format, and return the part that the tensor is of it."""
    described = _described(check, tensor)
    width = _width(check, tensor, target, customize_dtype, input_dtype)
    replaced = active_profile().internal_format == "replaced_by_base_format"
    if replaced and not _is_by_aclnn(tensor, target, described):
        target = base_format(target)
    _check_target(check, target, described)
    storage = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
    copy = tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    note(copy, replace(described, format=_new_format(target, len(described.sizes)), width=width))
    return copy


def _width(
    check: ArgumentChecks,
    tensor: Tensor,
    target: Format,
    customize_dtype: int | None,
    input_dtype: int | None,
) -> int | None:
    """Return how wide tiles are to be where a call says so; torch_npu takes ``input_dtype`` for both of them."""
    name, asked = ("input_dtype", input_dtype) if customize_dtype is None else ("customize_dtype", customize_dtype)
    if asked is None:
        return None
    described = _described(check, tensor)
    if not _is_plain(tensor, described):
        return None
    if active_profile().format_cast_path == "aclop":
        words = "customize_dtype is not supported by the current soc version."
        raise check.rejected(name, asked, "None, before CANN 9.1", ErrorCode.WRAPPER, words)
    if target is not Format.FRACTAL_NZ or not _is_by_aclnn(tensor, target, described):
        return None
    if asked != _INT32 or tensor.itemsize != torch.int32.itemsize:
        raise check.not_simulated(name, f"{asked} for {tensor.dtype}", f"{_INT32}, of int32 and float32")
    return _WORDS_OF_A_TILE


def _is_plain(tensor: Tensor, described: StorageFormat) -> bool:
    """Whether a tensor is the whole of its storage, as far as torch_npu looks at it before it asks aclnn."""
    in_order = described.format in BASE_FORMATS or tensor.is_contiguous()
    return in_order and tuple(tensor.shape) == described.sizes


def _is_by_aclnn(tensor: Tensor, target: Format, described: StorageFormat) -> bool:
    """Whether aclnn makes a cast: of matrices, alone or in a batch, into tiles or back."""
    return (
        active_profile().format_cast_path == "aclnn"
        and _is_plain(tensor, described)
        and len(described.sizes) in _RANKS_OF_ACLNN
        and Format.FRACTAL_NZ in (target, described.format)
        and (target in BASE_FORMATS or described.format in BASE_FORMATS)
    )


def _check_target(check: ArgumentChecks, target: Format, described: StorageFormat) -> None:
    """Refuse casts that torch_npu cannot name, and formats for other numbers of axes."""
    current, rank = described.format, len(described.sizes)
    if current in LAID_OUT and target in LAID_OUT and base_format(current) != base_format(target):
        words = f"unsupported cast from {current.name} to {target.name}"
        raise check.rejected("acl_format", f"{int(target)} {target.name}", "a base format first", words=words)
    if target not in LAYOUTS or not rank:
        return
    wanted = LAYOUTS[target].rank
    if rank < wanted and base_format(target) is Format.NCDHW:
        words = f"dim ({list(described.sizes)}) cannot convert to {target.name}"
        raise check.rejected("input", f"of {rank} axes", f"{wanted} for {target.name}", words=words)
    if rank > wanted:
        raise check.not_simulated("input", f"of {rank} axes for {target.name}", f"at most {wanted}")


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
    if rank == 0 or (target is Format.FRACTAL_NZ and rank < 2):
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
