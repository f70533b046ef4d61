"""Tensors that are views into larger storage, as slices of a fused projection are."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

import torch

Inputs = TypeVar("Inputs")

_MOST_OFFSET = 4096
"""A view begins as far into its storage where it is moved to, but for whole multiples of this."""

GAP = 4096.0
"""What lies between the rows of a view, and behind the last: finite, exact in every 16-bit type, and seen where it is
taken for data."""


MOST_SPARE = 2**16
"""Elements behind the last row of a view, unless eight times its extent are fewer: so that rows which are read with the
stride of a wider tensor, as those of a fused projection's queries, are read out of this storage, and seen."""


def sliced(rows: torch.Tensor, gap: int) -> torch.Tensor:
    """Return the same rows as a slice of storage in which ``gap`` elements of something else stand before each."""
    strides = list(rows.stride())
    strides[0] = rows[0].numel() + gap if len(rows) else strides[0]
    return _stored(rows, tuple(strides), gap, rows.device)


def moved(tensor: torch.Tensor, device: str | torch.device, *, copy: bool = False) -> torch.Tensor:
    """Return a tensor on a device, with its strides; ``Tensor.to`` makes the rows of a slice contiguous."""
    if tensor.is_contiguous():
        return tensor.to(device, copy=copy)
    if not copy and torch.device(device) == tensor.device:
        return tensor
    return _stored(tensor, tensor.stride(), int(tensor.storage_offset()) % _MOST_OFFSET, device)


def moved_inputs(inputs: Inputs, device: str | torch.device, copies: Collection[str]) -> Inputs:
    """Return a frozen dataclass with all its tensors on a device, with their strides, and those of dataclasses in it.

    Those named in ``copies`` are copied even where they are there already: operators write into them.
    """
    there: dict[str, Any] = {}
    for name, value in vars(inputs).items():
        if isinstance(value, torch.Tensor):
            there[name] = moved(value, device, copy=name in copies)
        elif dataclasses.is_dataclass(value):
            there[name] = moved_inputs(value, device, copies=())
    return dataclasses.replace(inputs, **there)  # type: ignore[type-var]


def _stored(tensor: torch.Tensor, strides: tuple[int, ...], offset: int, device: str | torch.device) -> torch.Tensor:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    filler = GAP if tensor.is_floating_point() else 77
    size = offset + max(extent, 0) + min(8 * max(extent, 0), MOST_SPARE)
    storage = torch.full((size,), filler, dtype=tensor.dtype, device=device)
    return storage.as_strided(tensor.shape, strides, offset).copy_(tensor)
