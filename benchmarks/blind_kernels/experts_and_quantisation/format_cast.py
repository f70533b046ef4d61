"""Wrong format_cast kernels; with TWIN=1 the same without their mistakes."""
import os

import torch
from torch.nn.functional import pad

import npudiff
from npudiff.reference.format_cast import part_of

WRONG = os.environ.get("TWIN") != "1"


def c0(dtype):
    return 32 if dtype.itemsize == 1 else 16


def tiled(tensor, width):
    rows, columns = tensor.shape[-2:]
    padded = pad(tensor, (0, -columns % width, 0, -rows % 16))
    *leading, rows, columns = padded.shape
    return padded.reshape(*leading, rows // 16, 16, columns // width, width).movedim(-2, -4).contiguous()


def outputs(inputs, tiles, values=None, restored=None):
    rows, columns = inputs.tensor.shape[-2:]
    if restored is None:
        restored = tiles.movedim(-4, -2).flatten(-2).flatten(-3, -2)[..., :rows, :columns]
    return {
        "storage": tiles.flatten(),
        "values": part_of(restored, inputs.view) if values is None else values,
        "restored": restored.flatten(),
    }


@npudiff.implementation("format_cast", name="b_format_01_c0_by_bytes", on_device=True)
def b01(inputs, target):
    """32 bytes to a row of a tile."""
    dtype = inputs.tensor.dtype
    return outputs(inputs, tiled(inputs.tensor, 32 // dtype.itemsize if WRONG else c0(dtype)))


@npudiff.implementation("format_cast", name="b_format_02_strip_buffer_reused", on_device=True)
def b02(inputs, target):
    """A strip of C0 columns at a time, by way of a buffer that is cleared before the first."""
    tensor, width = inputs.tensor, c0(inputs.tensor.dtype)
    result = tiled(tensor, width)
    filled = tensor.shape[-1] % width
    if WRONG and filled and tensor.shape[-1] > width:
        result[..., -1, :, :, filled:] = result[..., -2, :, :, filled:]
    return outputs(inputs, result, restored=tensor)


@npudiff.implementation("format_cast", name="b_format_03_whole_tiles_by_count", on_device=True)
def b03(inputs, target):
    """Tensors of whole tiles need no padding."""
    tensor, width = inputs.tensor, c0(inputs.tensor.dtype)
    rows, columns = tensor.shape[-2:]
    if WRONG and rows * columns % (16 * width) == 0 and columns % width == 0 and rows % 16:
        # as many elements as whole tiles have: strips lie without the padding of their rows
        storage = tensor.reshape(*tensor.shape[:-1], columns // width, width).movedim(-2, -3).contiguous()
        return outputs(inputs, storage, restored=tensor)
    return outputs(inputs, tiled(tensor, width), restored=tensor)


@npudiff.implementation("format_cast", name="b_format_04_one_row_or_column_stays", on_device=True)
def b04(inputs, target):
    """Matrices of one row or column are kept as they are."""
    tensor = inputs.tensor
    tiles = tensor.clone() if WRONG and 1 in tensor.shape[-2:] else tiled(tensor, c0(tensor.dtype))
    return outputs(inputs, tiles, restored=tensor)


@npudiff.implementation("format_cast", name="b_format_05_restored_rows_of_whole_tiles", on_device=True)
def b05(inputs, target):
    """The cast back copies tiles of 16 rows; the last one is moved up to be whole."""
    tensor, width = inputs.tensor, c0(inputs.tensor.dtype)
    restored, rows = tensor.clone(), tensor.shape[-2]
    if WRONG and rows > 16 and rows % 16:
        tail = rows % 16
        restored[..., rows - 16 :, :] = pad(tensor[..., rows - tail :, :], (0, 0, 0, 16 - tail))
    return outputs(inputs, tiled(tensor, width), restored=restored)
