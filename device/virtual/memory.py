"""Device memory seen from the host: a CPU tensor over the same bytes, and other formats in their logical order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, StorageFormat, note, noted_format
from npudiff.device.simulator.cache.layouts import LAID_OUT, from_storage, storage_shape, to_storage
from npudiff.device.simulator.errors import KernelMissing
from npudiff.device.virtual.devices import device

_SHARED = "_npudiff_host_storage"
_DESCRIBED = "_npudiff_storage_format"
"""Attributes of a device storage: the host storage over its bytes, and what it was cast from. They go with it."""


class NotOnVirtualNpu(RuntimeError):
    """The virtual NPU cannot do what it was asked; the message says what."""


class NoKernel(NotOnVirtualNpu, KernelMissing):
    """An operator of torch_npu has no kernel on the virtual NPU; the message names it."""


def is_on_device(value: object) -> bool:
    """Whether a value is a tensor on the virtual device."""
    return isinstance(value, Tensor) and value.device.type == "npu"


def same_bytes(tensor: Tensor) -> Tensor:
    """Return a CPU tensor over the same memory, with the same sizes and strides; nothing is copied.

    Of a tensor in tiles or blocks it shows the bytes as they lie, which is not the tensor's order.
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
        return known_format(tensor)
    except RuntimeError as error:
        if "NPUStorageImpl" not in str(error):
            raise
        return Format.ND  # torch made the storage, as it does to read one from a file: it has no format


def known_format(tensor: Tensor) -> Format:
    """Return the format of a device tensor's storage.

    Raises
    ------
    RuntimeError
        As torch_npu raises it, if torch made the storage by itself: a copy to the host asks for the format, which
        torch does to write the old form of files.
    """
    return Format(torch.ops.npu.get_npu_format.default(tensor))


def in_tiles(tensor: Tensor) -> bool:
    """Whether a device tensor is in a format that changes the order of elements: tiles, or blocks of channels.

    Raises
    ------
    NotOnVirtualNpu
        If the format is one whose order is not known here.
    """
    found = storage_format(tensor)
    if found in BASE_FORMATS:
        return False
    if found not in LAID_OUT:
        names = ", ".join(known.name for known in sorted(LAID_OUT))
        raise NotOnVirtualNpu(f"a tensor in format {found.name}: the virtual NPU has base formats and {names}")
    return True


def describe(tensor: Tensor, described: StorageFormat) -> None:
    """Remember what a device storage in tiles or blocks was cast from."""
    setattr(tensor.untyped_storage(), _DESCRIBED, described)


def description(tensor: Tensor) -> StorageFormat:
    """Return what a device storage in tiles or blocks was cast from; of one that torch_npu made, what it was made for.

    Raises
    ------
    NotOnVirtualNpu
        If the tensor is a part of a storage that nobody described.
    """
    described: StorageFormat | None = getattr(tensor.untyped_storage(), _DESCRIBED, None)
    if described is None:
        described = StorageFormat(storage_format(tensor), tuple(tensor.shape), tensor.dtype)
        if not tensor.is_contiguous() or bytes_of(described) != tensor.untyped_storage().nbytes():
            name, sizes = described.format.name, list(described.sizes)
            raise NotOnVirtualNpu(f"a part {sizes} of a storage in {name} whose own shape is not known")
        describe(tensor, described)
    return described


def bytes_of(described: StorageFormat) -> int:
    """Return how many bytes a storage in tiles or blocks takes, padding included."""
    return math.prod(storage_shape(described)) * described.dtype.itemsize


class Tiles:
    """The storage of a device tensor in tiles or blocks: its memory and what it was cast from, without the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._described = description(tensor)
        shape = storage_shape(self._described)
        shared = _host_storage(tensor.untyped_storage())
        whole = torch.empty(0, dtype=self._described.dtype).set_(shared)
        self.tiles = whole[: math.prod(shape)].view(shape)

    def view(self, tensor: Tensor) -> Tensor:
        """Return a CPU copy of a tensor in this storage, in its logical order, with a note of the format.

        The copy is of the whole storage, as a base of the view that the tensor is.
        """
        whole = from_storage(self.tiles, self._described)
        whole = whole.clone(memory_format=torch.contiguous_format)  # a storage of just its own elements
        copy = torch.empty(0, dtype=tensor.dtype).set_(
            whole.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        note(copy, self._described)
        return copy

    def load(self, copy: Tensor) -> None:
        """Let what :meth:`view` gave have the values that are in memory now."""
        self._values(copy).copy_(from_storage(self.tiles, self._described).reshape(-1))

    def store(self, copy: Tensor) -> None:
        """Write back what :meth:`view` gave, after somebody wrote into it; the padding of the tiles is left alone."""
        inside = to_storage(torch.ones(self._described.sizes, dtype=torch.bool), self._described)
        values = self._values(copy).view(self._described.sizes)
        self.tiles.copy_(torch.where(inside, to_storage(values, self._described), self.tiles))

    def _values(self, copy: Tensor) -> Tensor:
        return torch.empty(0, dtype=self._described.dtype).set_(copy.untyped_storage())


def noted(tensor: Tensor) -> Tensor:
    """Return what :func:`same_bytes` does of a tensor in a base format, with a note of the format."""
    view = same_bytes(tensor)
    base = tensor if tensor._base is None else tensor._base
    base = base.permute(sorted(range(base.dim()), key=base.stride, reverse=True))
    if base.is_contiguous():
        note(view, StorageFormat(storage_format(tensor), tuple(base.shape), base.dtype))
    return view


TILE_BYTES = 32
"""Bytes of a tile's row, of 16 rows: any storage in FRACTAL_NZ is as many tiles of int8."""

Fill = Callable[[Tensor], object]
"""Puts the values of a CPU tensor into memory of the device."""


def moved_to_device(result: Tensor) -> Tensor:
    """Return a device tensor with the values, sizes, strides and storage format of a CPU tensor."""
    made, fill = allocated(result)
    fill(result)
    return made


def allocated(result: Tensor) -> tuple[Tensor, Fill]:
    """Return a device tensor for a CPU tensor, with whatever is in its memory, and what fills that with values.

    What fills it takes the CPU tensor, or another one that is like it, and does not keep the device tensor alive.
    """
    if result.is_quantized:
        raise NotOnVirtualNpu("a tensor that torch has quantised: the virtual NPU has none; torch_npu's take int8")
    described = noted_format(result)
    if described is not None:
        return _allocated_storage(result, described)
    if result._is_zerotensor():  # gradients of nothing, which have no memory on the host
        return torch.zeros(result.size(), dtype=result.dtype, device=device()), _nothing
    result = result.resolve_conj().resolve_neg()
    made = torch.empty_strided(result.size(), result.stride(), dtype=result.dtype, device=device())
    if not result.numel():
        return made, _nothing
    memory = same_bytes(made)
    if all(result.stride()) or result.is_contiguous():
        return made, memory.copy_
    # expanded: several elements in one place, which copy_ refuses to write
    own = _bytes(memory)
    return made, lambda values: own.copy_(_bytes(values.resolve_conj().resolve_neg())[: own.numel()])


def _nothing(_: Tensor) -> None:
    """Fill memory that has no elements."""


def _allocated_storage(result: Tensor, described: StorageFormat) -> tuple[Tensor, Fill]:
    """Return a view of a device storage in a format: tiled only where torch_npu's configuration allows it."""
    sizes, dtype = described.sizes, described.dtype
    if (
        described.width is not None
    ):  # torch_npu makes tiles of other widths for aclnn only: as many bytes, which it makes
        sizes, dtype = (bytes_of(described) // TILE_BYTES, TILE_BYTES), torch.int8
    made = torch.ops.npu.empty_with_format.default(
        sizes, dtype=dtype, device=device(), acl_format=int(described.format)
    )
    tiled = in_tiles(made)
    if tiled:
        describe(made, described)
    memory = Tiles(made).tiles if tiled else same_bytes(made).view(-1)

    def fill(values: Tensor) -> None:
        whole = torch.empty(0, dtype=described.dtype).set_(values.untyped_storage())
        memory.copy_(to_storage(whole.view(described.sizes), described) if tiled else whole)

    return view_of(made.untyped_storage(), result), fill


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a CPU storage from a tensor's first element on."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return whole[tensor.storage_offset() * tensor.itemsize :]


def view_of(storage: torch.UntypedStorage, result: Tensor) -> Tensor:
    """Return the device tensor that a CPU tensor over the same memory stands for."""
    made = torch.empty(0, dtype=result.dtype, device=storage.device)
    return _with_bits_of(result, made.set_(storage, result.storage_offset(), result.size(), result.stride()))
