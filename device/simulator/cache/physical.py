"""What a device has in memory behind a tensor, in the order of its addresses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.cache.formats import noted_format
from npudiff.device.simulator.cache.layouts import LAID_OUT, from_storage, storage_shape, to_storage
from npudiff.device.simulator.errors import NotSimulated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def physical(tensor: Tensor) -> Tensor:
    """Return a copy of what a device has in the storage of a tensor, in the order of its addresses.

    Parameters
    ----------
    tensor : Tensor
        Any CPU tensor. Of a view, the whole storage is returned.

    Returns
    -------
    Tensor
        As :func:`~npudiff.device.simulator.cache.layouts.storage_shape` has it, from the shape with which the storage
        was cast; in a base format [elements of the storage]. In the dtype of the tensor: where that is not the dtype of
        the cast, the same bytes, and a last axis of another length.
    """
    noted = noted_format(tensor)
    if noted is None or noted.format not in LAID_OUT:
        return _storage(tensor, tensor.dtype).clone()
    return to_storage(_storage(tensor, noted.dtype).view(noted.sizes), noted).view(tensor.dtype)


def device_bytes(operator: str, argument: str, tensor: Tensor) -> Tensor:
    """Return the bytes that a kernel finds behind the address of a contiguous tensor.

    Returns
    -------
    Tensor
        uint8 [bytes of the tensor], sharing the tensor's memory; for one in another than a base format a copy,
        uint8 [bytes of the storage].

    Raises
    ------
    NotSimulated
        A view into such a storage that does not start at its beginning.
    """
    noted = noted_format(tensor)
    if noted is None or noted.format not in LAID_OUT:
        return tensor.view(-1).view(torch.uint8)
    if tensor.storage_offset():
        given = f"a view that starts at element {tensor.storage_offset()} of a storage in {noted.format.name}"
        raise NotSimulated(operator, argument, given, "a view from the beginning of the storage")
    return physical(tensor).view(-1).view(torch.uint8)


@contextmanager
def written_bytes(operator: str, argument: str, tensor: Tensor) -> Iterator[Tensor]:
    """Give :func:`device_bytes` to write into; what was written is in the tensor when the block ends.

    Bytes that are padding have no place in a CPU tensor; what is written there is forgotten.
    """
    memory = device_bytes(operator, argument, tensor)
    yield memory
    noted = noted_format(tensor)
    if noted is not None and noted.format in LAID_OUT:
        storage = memory.view(noted.dtype).view(storage_shape(noted))
        _storage(tensor, noted.dtype).copy_(from_storage(storage, noted).view(-1))


def _storage(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a whole storage [elements], shared."""
    return torch.empty(0, dtype=dtype, device=tensor.device).set_(tensor.untyped_storage())
