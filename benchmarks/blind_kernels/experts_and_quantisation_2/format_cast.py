"""Wrong kernels of format_cast; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff
from npudiff.reference.format_cast import part_of

WRONG = os.environ.get("TWIN") != "1"

ROWS = 16


def _columns(dtype):
    return 32 if dtype.itemsize == 1 else 16


def _tiled(matrices, width):
    """Tiles of ``[matrices, rows, columns]`` that are whole tiles: ``[matrices, across, down, 16, width]``."""
    count, rows, columns = matrices.shape
    return matrices.reshape(count, rows // ROWS, ROWS, columns // width, width).permute(0, 3, 1, 2, 4)


def _padded(matrices, width, into=None):
    count, rows, columns = matrices.shape
    shape = (count, -(-rows // ROWS) * ROWS, -(-columns // width) * width)
    whole = torch.zeros(shape, dtype=matrices.dtype, device=matrices.device) if into is None else into
    whole[:, :rows, :columns] = matrices
    return whole


def _outputs(inputs, storage):
    return {
        "storage": storage.reshape(-1),
        "format": torch.tensor([29], device=inputs.tensor.device),
        "values": part_of(inputs.tensor, inputs.view),
        "restored": inputs.tensor.reshape(-1),
    }


def _matrices(inputs):
    return inputs.tensor.reshape(-1, *inputs.tensor.shape[-2:])


@npudiff.implementation("format_cast", name="d_format_cast_01_columns_first_in_a_tile", on_device=True)
def d01(inputs, target):
    """Inside a tile, columns lie one after the other, as in the other fractal (nZ for zN)."""
    width = _columns(inputs.tensor.dtype)
    tiles = _tiled(_padded(_matrices(inputs), width), width)
    return _outputs(inputs, tiles.transpose(-1, -2) if WRONG else tiles)


@npudiff.implementation("format_cast", name="d_format_cast_02_matrices_as_one", on_device=True)
def d02(inputs, target):
    """Several matrices are cast as one with all of their (padded) rows, whose tiles lie down all of them first."""
    width = _columns(inputs.tensor.dtype)
    whole = _padded(_matrices(inputs), width)
    if WRONG:
        whole = whole.reshape(1, -1, whole.shape[-1])
    return _outputs(inputs, _tiled(whole, width))


@npudiff.implementation("format_cast", name="d_format_cast_03_padding_of_the_last_cast", on_device=True, stateful=True)
def d03():
    """The buffer of tiles is kept, and only the tensor is written: padding holds what a larger tensor left there."""
    buffers = {}

    def cast(inputs, target):
        matrices, width = _matrices(inputs), _columns(inputs.tensor.dtype)
        count, rows, columns = matrices.shape
        key = (count, -(-rows // ROWS), -(-columns // width), matrices.dtype)
        buffers[key] = _padded(matrices, width, buffers.get(key) if WRONG else None)
        return _outputs(inputs, _tiled(buffers[key], width))

    return cast
