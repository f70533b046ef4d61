"""The storage format FRACTAL_NZ of whole tensors: where each element lies, and what is read back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import Expected, exactly

FRACTAL_NZ = 29
"""The format's number, as ``get_npu_format`` reports it (``aclFormat`` in CANN's ``acl_base_rt.h``)."""

TILE_ROWS = 16

VIEWS = ("whole", "rows", "columns", "transposed")
"""Which part of a tensor is given to the cast: all of it, or a view of it (``part_of``)."""


@dataclass(frozen=True)
class FormatCastInputs:
    """A tensor that is cast to FRACTAL_NZ and back."""

    tensor: torch.Tensor
    """``[..., rows, columns]``, contiguous; bfloat16, float16, float32, int8 or int32."""
    view: str = "whole"
    """One of ``VIEWS``: what of the tensor is cast."""

    def to(self, device: str | torch.device) -> FormatCastInputs:
        """Return the same inputs on ``device``; the tensor is a copy, whose format can be changed in place."""
        return replace(self, tensor=self.tensor.to(device, copy=True))

    @property
    def part(self) -> torch.Tensor:
        """What is cast, sharing the tensor's memory."""
        return part_of(self.tensor, self.view)


def part_of(tensor: torch.Tensor, view: str) -> torch.Tensor:
    """Return a view of a tensor: its later half of rows or columns, or its transpose.

    Raises
    ------
    ValueError
        If there is no such view.
    """
    rows, columns = tensor.shape[-2:]
    if view == "rows":
        return tensor[..., rows // 2 :, :]
    if view == "columns":
        return tensor[..., columns // 2 :]
    if view not in VIEWS:
        raise ValueError(f"view is one of {', '.join(VIEWS)}, got {view}")
    return tensor.transpose(-1, -2) if view == "transposed" else tensor


def tile_width(dtype: torch.dtype) -> int:
    """Return C0, the columns of a tile: 32 of one byte, 16 of all else.

    A tile's row has 32 bytes, but torch_npu counts elements of four bytes as two (``InferShapeNDToNZ`` in its
    ``framework/FormatHelper.cpp``). In a paged cache, which carries no format, C0 goes by bytes alone
    (``reference.cache_layout.strip_width``).
    """
    return 32 // min(dtype.itemsize, 2)


def tiles(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Return the shape of one matrix in FRACTAL_NZ: tiles across, tiles down, rows and columns of a tile."""
    width = tile_width(dtype)
    return (-(-columns // width), -(-rows // TILE_ROWS), TILE_ROWS, width)


def addresses(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the place of every element of a matrix in its storage.

    Tiles of 16 rows and C0 columns lie one after the other, down the first C0 columns, then down the next; inside a
    tile, rows lie one after the other.

    Returns
    -------
    torch.Tensor
        int64 ``[rows, columns]``.
    """
    _, down, height, width = tiles(rows, columns, dtype)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    tile = column // width * down + row // height
    return (tile * height + row % height) * width + column % width


def format_cast(inputs: FormatCastInputs) -> dict[str, Expected]:
    """Return what a cast to FRACTAL_NZ leaves in memory and what is read from it.

    Of a view, the whole storage is cast, and the result is the same view of the new storage. That is what torch_npu
    does before CANN 9.1 (``npu_format_cast_impl`` in its ``FormatCastKernelNpu.cpp``); vllm-ascend pull request 12512
    reports a failure for a transposed view and makes it contiguous first. Which one a device does was not seen: an
    implementation that refuses views says so in ``supports``.

    Returns
    -------
    dict
        ``storage``: elements in order of their addresses, one matrix ``[..., tiles across, tiles down, 16, C0]`` after
        the other, padded with zeros. ``format``: int64 ``[1]``, the number of FRACTAL_NZ. ``values``: the view, read
        by whoever knows nothing of formats. ``restored``: elements in order of their addresses after the cast back.

    Raises
    ------
    ValueError
        If the tensor has fewer than two axes, or gaps.
    """
    tensor = inputs.tensor
    if tensor.dim() < 2 or not tensor.is_contiguous():
        raise ValueError(f"tensor must be contiguous, [..., rows, columns], got {tuple(tensor.shape)}")
    rows, columns = tensor.shape[-2:]
    matrices = tensor.reshape(math.prod(tensor.shape[:-2]), rows, columns)
    storage = torch.zeros(len(matrices), math.prod(tiles(rows, columns, tensor.dtype)), dtype=tensor.dtype)
    storage[:, addresses(rows, columns, tensor.dtype)] = matrices
    return {
        "storage": exactly(storage.flatten()),
        "format": exactly(torch.tensor([FRACTAL_NZ])),
        "values": exactly(inputs.part),
        "restored": exactly(tensor.flatten()),
    }
