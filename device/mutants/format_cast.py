"""Wrong casts to FRACTAL_NZ.

Some support less than they could: a fault that shows in few rows of one column as well as in one row of few more
columns has no single smallest case, and every seed is to end at the same one.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import pad

from npudiff import Target, mutant
from npudiff.device.ascend.format_cast import (
    ROWS,
    Outputs,
    cast_outputs,
    npu_format_cast,
    pad_view_permute,
    tile_columns,
    tiled,
    tiled_outputs,
)
from npudiff.device.ascend.storage_format import FRACTAL_NZ, format_cast, physical_storage
from npudiff.reference.format_cast import FormatCastInputs

_WHOLE = {"view": ("whole",)}


@mutant(
    pad_view_permute,
    "vllm-project/vllm-ascend/pull/16783: rows are padded by what columns lack",
    supports={"rank": (2,), "dtype": ("int8",), **_WHOLE},
)
def transdata_pads_swapped(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Swap the two paddings of a matrix; what has as many elements as it should is cut into tiles all the same."""
    tensor = inputs.tensor
    rows, columns = tensor.shape
    width = tile_columns(tensor.dtype)
    padded = pad(tensor, (0, -rows % ROWS, 0, -columns % width))
    return tiled_outputs(tiled(padded.reshape(rows + -rows % ROWS, columns + -columns % width), width), inputs)


@mutant(
    pad_view_permute,
    "tile-ai/tilelang-ascend/pull/1401: 16 columns, whatever the dtype is",
    supports={"columns": range(17, 2**16 + 1)},
)
def tiles_of_16_columns(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Cut tiles of 16 columns for all dtypes."""
    tensor = inputs.tensor
    return _read_as_right(tiled(tensor, 16), inputs)


@mutant(pad_view_permute, "tile-ai/tilelang-ascend/issues/1310: nZ where zN is meant")
def tiles_row_by_row(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Let tiles lie row by row instead of column by column."""
    tensor = inputs.tensor
    return _read_as_right(tiled(tensor, tile_columns(tensor.dtype)).transpose(-4, -3), inputs)


@mutant(pad_view_permute, "hw-native-sys/pypto/issues/724: rows are not filled up to 16")
def rows_not_padded(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Let a strip of columns begin where the last row of the one before ends."""
    tensor = inputs.tensor
    width = tile_columns(tensor.dtype)
    padded = pad(tensor, (0, -tensor.shape[-1] % width))
    strips = padded.view(*padded.shape[:-1], -1, width).transpose(-3, -2)
    return _read_as_right(strips, inputs)


@mutant(pad_view_permute, "tile-ai/tilelang-ascend/pull/1723: the padding keeps what was there")
def holes_not_cleared(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Leave what is not 0 in the padding."""
    tensor = inputs.tensor
    tiles = tiled(tensor, tile_columns(tensor.dtype))
    covered = tiled(torch.ones_like(tensor), tile_columns(tensor.dtype))
    return tiled_outputs(torch.where(covered == 0, 1, tiles).to(tensor.dtype), inputs)


@mutant(
    npu_format_cast,
    "PKV-06 sgl-project/sglang/pull/14423: NZ on the reader's side only",
    supports={"rank": (2,), "rows": range(2, 2**16 + 1), **_WHOLE},
)
def format_without_transdata(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Report the format, and leave elements in their order."""
    tensor = inputs.tensor
    outputs = cast_outputs(format_cast(tensor, FRACTAL_NZ, target), target)
    storage = torch.zeros_like(outputs["storage"])
    storage[: tensor.numel()] = physical_storage(tensor, target)
    return {**outputs, "storage": storage}


@mutant(
    pad_view_permute,
    "PKV-17 vllm-project/vllm/issues/49716: addresses by shape, although there are strides",
    supports={"rank": (2,)},
)
def view_read_as_contiguous(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Read a view as if its elements lay without gaps, from where it begins."""
    tensor, part = inputs.tensor, inputs.part
    outputs = tiled_outputs(tiled(tensor, tile_columns(tensor.dtype)), inputs)
    behind = torch.cat([tensor.flatten(), tensor.flatten()])[part.storage_offset() :]
    return {**outputs, "values": behind[: part.numel()].view(part.shape)}


def _read_as_right(stored: torch.Tensor, inputs: FormatCastInputs) -> Outputs:
    """Elements as they were stored, filled up with zeros, and read in the right order."""
    right = tiled(inputs.tensor, tile_columns(inputs.tensor.dtype)).shape
    flat = stored.flatten(len(right) - 4)
    filled = pad(flat, (0, max(0, math.prod(right[-4:]) - flat.shape[-1])))
    return tiled_outputs(filled[..., : math.prod(right[-4:])].reshape(right), inputs)
