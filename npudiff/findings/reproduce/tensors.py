"""Tensors as a script sees them: elements at places in memory, and the bytes of that memory."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from npudiff.findings.reproduce.operands import Refused

Key = tuple[object, ...]

_MOST_SEALED = 2**26
"""Bytes of a memory that is looked at before each call."""


def key_of(tensor: torch.Tensor) -> Key:
    """What is alike for tensors that are the same elements in the same order."""
    lies = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
    return (tensor.untyped_storage()._cdata, tensor.dtype, *lies)


def place(tensor: torch.Tensor) -> dict[str, Any]:
    """Return where the elements of a tensor are in its memory."""
    return {"shape": list(tensor.shape), "stride": list(tensor.stride()), "offset": tensor.storage_offset()}


def described(tensor: torch.Tensor) -> dict[str, Any]:
    """Return what is said of a tensor beside its name."""
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "device": str(tensor.device)}


def check_kind(tensor: torch.Tensor) -> None:
    """Raise ``Refused`` for a tensor that is more than elements at a place in memory."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise Refused(f"an operator is given a {type(tensor).__name__}, which makes calls of its own")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise Refused(f"an operator is given a tensor that is not strided: {tensor.layout}, {tensor.dtype}")
    if tensor.is_conj() or tensor.is_neg():
        raise Refused("an operator is given a conjugate or negative that torch has not computed yet")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all bytes of the storage of a tensor, on the host."""
    if tensor.device.type != "cpu":
        count = tensor.untyped_storage().nbytes() // tensor.itemsize
        tensor = torch.as_strided(tensor.detach(), (count,), (1,), 0).cpu()
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def checksum(tensor: torch.Tensor) -> int | None:
    """Return a number that changes when the memory of a tensor does; None where it is large, or cannot be read."""
    if tensor.untyped_storage().nbytes() > _MOST_SEALED:
        return None
    try:
        return zlib.crc32(whole(tensor).numpy().data)
    except RuntimeError:  # a device may have a format of which no other view can be read
        return None


def labelled(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of (nested) dataclasses, mappings and lists with the names of their places."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            yield name or "given", value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from labelled(getattr(value, field.name), f"{name}_{field.name}" if name else field.name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from labelled(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from labelled(item, f"{name}_{number}")
