"""How backends bring tensors into FRACTAL_NZ: the operator, in place or not, and tiling by torch."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from npudiff import Target, implementation
from npudiff.device.ascend.storage_format import FRACTAL_NZ, ND, allow_internal_formats, format_cast, physical_storage
from npudiff.reference.format_cast import FormatCastInputs, part_of

Outputs = dict[str, torch.Tensor]

ROWS = 16
"""Rows of a tile."""


@implementation("format_cast", on_device=True)
def npu_format_cast(inputs: FormatCastInputs, target: Target) -> Outputs:
    """npu_format_cast to FRACTAL_NZ, which returns a new tensor, and back to ND."""
    part = inputs.part
    return cast_outputs(format_cast(part, FRACTAL_NZ, target), target)


@implementation("format_cast", on_device=True)
def npu_format_cast_in_place(inputs: FormatCastInputs, target: Target) -> Outputs:
    """npu_format_cast_, which gives the tensor itself a new storage, as sglang casts weights after loading."""
    part = inputs.part
    allow_internal_formats(target)
    torch.ops.npu.npu_format_cast_(part, FRACTAL_NZ)
    return cast_outputs(part, target)


def cast_outputs(cast: torch.Tensor, target: Target) -> Outputs:
    """Look at a tensor that was cast, and cast it back."""
    return {
        "storage": physical_storage(cast, target),
        "format": torch.tensor([torch.ops.npu.get_npu_format(cast)]),
        "values": cast,
        "restored": physical_storage(format_cast(cast, ND, target), target),
    }


@implementation("format_cast", on_device=True, graph=True)
def pad_view_permute(inputs: FormatCastInputs, target: Target) -> Outputs:
    """Tiling in plain torch, as MLA preprocessing prepares its weights; the result carries no format."""
    return tiled_outputs(tiled(inputs.tensor, tile_columns(inputs.tensor.dtype)), inputs)


def tile_columns(dtype: torch.dtype) -> int:
    """Columns of a tile, C0."""
    return 32 if dtype.itemsize == 1 else 16


def tiled(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Pad ``[..., rows, columns]`` with zeros and cut it into ``[..., tiles across, tiles down, 16, width]``."""
    padded = pad(tensor, (0, -tensor.shape[-1] % width, 0, -tensor.shape[-2] % ROWS))
    *leading, rows, columns = padded.shape
    return padded.view(*leading, rows // ROWS, ROWS, columns // width, width).movedim(-2, -4).contiguous()


def tiled_outputs(tiles: torch.Tensor, inputs: FormatCastInputs) -> Outputs:
    """Put tiles together again, and leave out the padding."""
    rows, columns = inputs.tensor.shape[-2:]
    whole = tiles.movedim(-4, -2).flatten(-2).flatten(-3, -2)[..., :rows, :columns]
    return {
        "storage": tiles.flatten(),
        "values": part_of(whole, inputs.view),
        "restored": whole.flatten(),
    }
