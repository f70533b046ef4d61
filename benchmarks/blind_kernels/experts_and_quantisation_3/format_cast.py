"""Wrong kernels of format_cast; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff
from npudiff.reference.format_cast import part_of

WRONG = os.environ.get("TWIN") != "1"


def columns_of_tile(dtype):
    return 32 if dtype.itemsize == 1 else 16


def addresses(rows, columns, width):
    down = -(-rows // 16)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    return ((column // width * down + row // 16) * 16 + row % 16) * width + column % width


def size_of(rows, columns, width):
    return -(-columns // width) * width * (-(-rows // 16)) * 16


def outputs(inputs, storage):
    tensor = inputs.tensor
    return {
        "storage": storage,
        "format": torch.tensor([29]),
        "values": part_of(tensor, inputs.view).clone(),
        "restored": tensor.flatten().clone(),
    }


def cast(tensor, width, storage=None):
    rows, columns = tensor.shape[-2:]
    matrices = tensor.reshape(-1, rows, columns)
    size = size_of(rows, columns, width)
    if storage is None:
        storage = torch.zeros(len(matrices) * size, dtype=tensor.dtype)
    storage.view(len(matrices), size)[:, addresses(rows, columns, width)] = matrices
    return storage


@npudiff.implementation("format_cast", name="e_format_cast_01_tile_by_bytes", on_device=True)
def e01(inputs, target):
    """A tile's row has 32 bytes for every dtype: eight columns of four bytes."""
    dtype = inputs.tensor.dtype
    width = 32 // dtype.itemsize if WRONG else columns_of_tile(dtype)
    return outputs(inputs, cast(inputs.tensor, width))


@npudiff.implementation("format_cast", name="e_format_cast_02_matrices_folded", on_device=True)
def e02(inputs, target):
    """Leading axes are folded into the rows: several matrices are tiled as one, and padded once."""
    tensor = inputs.tensor
    if WRONG:
        tensor = tensor.reshape(-1, tensor.shape[-1])
    return outputs(inputs, cast(tensor, columns_of_tile(tensor.dtype)))


@npudiff.implementation("format_cast", name="e_format_cast_03_padding_of_workspace", on_device=True, stateful=True)
def e03():
    """The storage is a part of a workspace that is cleared when it grows: padding holds what an earlier call left."""
    workspaces = {}

    def run(inputs, target):
        tensor = inputs.tensor
        rows, columns = tensor.shape[-2:]
        width = columns_of_tile(tensor.dtype)
        size = tensor.numel() // max(rows * columns, 1) * size_of(rows, columns, width)
        workspace = workspaces.get(tensor.dtype)
        if workspace is None or len(workspace) < size:
            workspace = workspaces[tensor.dtype] = torch.zeros(size, dtype=tensor.dtype)
        if not WRONG:
            workspace.zero_()
        return outputs(inputs, cast(tensor, width, workspace[:size]).clone())

    return run
