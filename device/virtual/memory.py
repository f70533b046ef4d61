"""Device memory seen from the host: a CPU tensor over the same bytes, and FRACTAL_NZ in its logical order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, StorageFormat, note, noted_format
from npudiff.device.simulator.cache.fractal import fractal_shape, from_fractal_nz, to_fractal_nz

_SHARED = "_npudiff_host_storage"
_DESCRIBED = "_npudiff_storage_format"
"""Attributes of a device storage: the host storage over its bytes, and what it was cast from. They go with it."""


class NotOnVirtualNpu(RuntimeError):
    """The virtual NPU cannot do what it was asked; the message says what."""


def is_on_device(value: object) -> bool:
    """Whether a value is a tensor on the virtual device."""
    return isinstance(value, Tensor) and value.device.type == "npu"


@cache
def device() -> torch.device:
    """Return the one device."""
    return torch.device("npu:0")


def same_bytes(tensor: Tensor) -> Tensor:
    """Return a CPU tensor over the same memory, with the same sizes and strides; nothing is copied.

    Of a tensor in FRACTAL_NZ it shows the bytes as they lie, which is not the tensor's order.
    """
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        with torch.inference_mode():  # what may not be done to such a tensor may not be done to this one
            return same_bytes(tensor)
    shared = _host_storage(tensor.untyped_storage())
    alias = torch.empty(0, dtype=tensor.dtype).set_(shared, tensor.storage_offset(), tensor.size(), tensor.stride())
    return _with_bits_of(tensor, alias)


def _with_bits_of(tensor: Tensor, alias: Tensor) -> Tensor:
    """Let a tensor over the same memory be conjugated or negated where the other is, which only a bit of it says."""
    if tensor.is_conj():
        torch._C._set_conj(alias, True)
    if tensor.is_neg():
        torch._C._set_neg(alias, True)
    return alias


def _host_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Return the host storage over a device storage: always the same one, so that torch sees what overlaps."""
    shared: torch.UntypedStorage | None = getattr(storage, _SHARED, None)
    pointer, size = storage.data_ptr(), storage.nbytes()
    if shared is not None and shared.data_ptr() == pointer and shared.nbytes() == size:
        return shared
    made: Any = torch._C._construct_storage_from_data_pointer(pointer, torch.device("cpu"), size)
    setattr(storage, _SHARED, made)
    host: torch.UntypedStorage = made
    return host


def storage_format(tensor: Tensor) -> Format:
    """Return the format of a device tensor's storage, as torch_npu knows it."""
    if tensor.is_conj():  # operators other than torch's own get such a tensor as a copy
        tensor = tensor.conj()
    if tensor.is_neg():
        tensor = torch._neg_view(tensor)
    try:
        return Format(torch.ops.npu.get_npu_format.default(tensor))
    except RuntimeError as error:
        if "NPUStorageImpl" not in str(error):
            raise
        return Format.ND  # torch made the storage, as it does to write one to a file: it has no format


def in_tiles(tensor: Tensor) -> bool:
    """Whether a device tensor is in FRACTAL_NZ.

    Raises
    ------
    NotOnVirtualNpu
        If it is in another format that changes the order of elements.
    """
    found = storage_format(tensor)
    if found in BASE_FORMATS:
        return False
    if found is not Format.FRACTAL_NZ:
        raise NotOnVirtualNpu(f"a tensor in format {found.name}: the virtual NPU has base formats and FRACTAL_NZ")
    return True


def describe(tensor: Tensor, described: StorageFormat) -> None:
    """Remember what a device storage in FRACTAL_NZ was cast from."""
    setattr(tensor.untyped_storage(), _DESCRIBED, described)


def description(tensor: Tensor) -> StorageFormat:
    """Return what a device storage in FRACTAL_NZ was cast from; of one that torch_npu made, what it was made for.

    Raises
    ------
    NotOnVirtualNpu
        If the tensor is a part of a storage that nobody described.
    """
    described: StorageFormat | None = getattr(tensor.untyped_storage(), _DESCRIBED, None)
    if described is None:
        sizes = tuple(tensor.shape)
        if not tensor.is_contiguous() or tiled_bytes(sizes, tensor.dtype) != tensor.untyped_storage().nbytes():
            raise NotOnVirtualNpu(f"a part {list(sizes)} of a storage in FRACTAL_NZ whose own shape is not known")
        described = StorageFormat(Format.FRACTAL_NZ, sizes, tensor.dtype)
        describe(tensor, described)
    return described


def tiled_bytes(sizes: Sequence[int], dtype: torch.dtype) -> int:
    """Return how many bytes a tensor of these sizes takes in FRACTAL_NZ, padding included."""
    return math.prod(fractal_shape(sizes, dtype)) * dtype.itemsize


def logical(tensor: Tensor) -> Tensor:
    """Return a CPU copy of a device tensor in FRACTAL_NZ in its logical order, with a note of the format.

    The copy is of the whole storage, as a base of the view that the tensor is.
    """
    described = description(tensor)
    whole = from_fractal_nz(_tiles(tensor, described), described.sizes)
    whole = whole.clone(memory_format=torch.contiguous_format)  # a storage of just its own elements
    copy = torch.empty(0, dtype=tensor.dtype).set_(
        whole.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    note(copy, described)
    return copy


def noted(tensor: Tensor) -> Tensor:
    """Return what :func:`same_bytes` does of a tensor in a base format, with a note of the format."""
    view = same_bytes(tensor)
    base = tensor if tensor._base is None else tensor._base
    base = base.permute(sorted(range(base.dim()), key=base.stride, reverse=True))
    if base.is_contiguous():
        note(view, StorageFormat(storage_format(tensor), tuple(base.shape), base.dtype))
    return view


def store_logical(tensor: Tensor, values: Tensor) -> None:
    """Write back what :func:`logical` gave, after somebody wrote into it; the padding of the tiles is left alone."""
    described = description(tensor)
    _fill(tensor, described, torch.empty(0, dtype=described.dtype).set_(values.untyped_storage()))


def _fill(tensor: Tensor, described: StorageFormat, values: Tensor) -> None:
    """Put values, in their logical order, into the tiles of a device storage."""
    tiles = _tiles(tensor, described)
    width = torch.int8 if described.dtype.itemsize == 1 else torch.int16  # tiles of the same width
    inside = to_fractal_nz(torch.ones(described.sizes, dtype=width)).bool()
    tiles.copy_(torch.where(inside, to_fractal_nz(values.view(described.sizes)), tiles))


def _tiles(tensor: Tensor, described: StorageFormat) -> Tensor:
    """Return the tiles of a device storage, sharing its memory."""
    shape = fractal_shape(described.sizes, described.dtype)
    shared = _host_storage(tensor.untyped_storage())
    return torch.empty(0, dtype=described.dtype).set_(shared)[: math.prod(shape)].view(shape)


def moved_to_device(result: Tensor) -> Tensor:
    """Return a device tensor with the values, sizes, strides and storage format of a CPU tensor."""
    if result.is_quantized:
        raise NotOnVirtualNpu("a tensor that torch has quantised: the virtual NPU has none; torch_npu's take int8")
    described = noted_format(result)
    if described is not None:
        return _moved_storage(result, described)
    if result._is_zerotensor():  # gradients of nothing, which have no memory on the host
        return torch.zeros(result.size(), dtype=result.dtype, device=device())
    result = result.resolve_conj().resolve_neg()
    made = torch.empty_strided(result.size(), result.stride(), dtype=result.dtype, device=device())
    if result.numel():
        if all(result.stride()) or result.is_contiguous():
            same_bytes(made).copy_(result)
        else:  # expanded: several elements in one place, which copy_ refuses to write
            _bytes(same_bytes(made)).copy_(_bytes(result)[: made.untyped_storage().nbytes()])
    return made


def _moved_storage(result: Tensor, described: StorageFormat) -> Tensor:
    """Return a view of a device storage in a format: tiled only where torch_npu's configuration allows it."""
    values = torch.empty(0, dtype=described.dtype).set_(result.untyped_storage())
    made = torch.ops.npu.empty_with_format.default(
        described.sizes, dtype=described.dtype, device=device(), acl_format=int(described.format)
    )
    if in_tiles(made):
        tiles = _tiles(made, described)
        tiles.copy_(to_fractal_nz(values.view(described.sizes)))
        describe(made, described)
    else:
        same_bytes(made).view(-1).copy_(values)
    return view_of(made.untyped_storage(), result)


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a CPU storage from a tensor's first element on."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return whole[tensor.storage_offset() * tensor.itemsize :]


def view_of(storage: torch.UntypedStorage, result: Tensor) -> Tensor:
    """Return the device tensor that a CPU tensor over the same memory stands for."""
    made = torch.empty(0, dtype=result.dtype, device=device())
    return _with_bits_of(result, made.set_(storage, result.storage_offset(), result.size(), result.stride()))
