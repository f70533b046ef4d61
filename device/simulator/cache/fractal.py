"""FRACTAL_NZ: how it orders elements, and what a device has in memory behind a tensor.

A matrix [H, W] is cut into tiles of 16 x C0; the tiles lie column by column, each row-major, and both axes are
padded with zeros. Source: ``InferShapeNDToNZ`` in Ascend/pytorch, ``torch_npu/csrc/framework/FormatHelper.cpp``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.cache.formats import Format, noted_format
from npudiff.device.simulator.errors import NotSimulated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

_TILE_ROWS = 16
_TILE_BYTES = 32


def tile_width(dtype: torch.dtype) -> int:
    """Return C0: 32 for one byte, 16 for all else, since torch_npu counts wider dtypes as two bytes."""
    return _TILE_BYTES // min(dtype.itemsize, 2)


def fractal_shape(sizes: Sequence[int], dtype: torch.dtype) -> tuple[int, ...]:
    """Return the shape [..., ceil(W / C0), ceil(H / 16), 16, C0] that [..., H, W] has in FRACTAL_NZ."""
    *batch, height, width = sizes
    c0 = tile_width(dtype)
    return (*batch, -(-width // c0), -(-height // _TILE_ROWS), _TILE_ROWS, c0)


def to_fractal_nz(matrix: Tensor) -> Tensor:
    """Reorder a matrix.

    Parameters
    ----------
    matrix : Tensor
        [..., H, W] of any dtype.

    Returns
    -------
    Tensor
        [..., ceil(W / C0), ceil(H / 16), 16, C0], contiguous; 0 where the matrix has no element.
    """
    *batch, columns, rows, tile_rows, c0 = fractal_shape(matrix.shape, matrix.dtype)
    padded = matrix.new_zeros(*batch, rows * tile_rows, columns * c0)
    padded[..., : matrix.shape[-2], : matrix.shape[-1]] = matrix
    tiles = padded.view(*batch, rows, tile_rows, columns, c0)
    return tiles.movedim(-2, -4).contiguous()


def from_fractal_nz(tiles: Tensor, sizes: Sequence[int]) -> Tensor:
    """Undo :func:`to_fractal_nz`; what lies in the padding is lost.

    Parameters
    ----------
    tiles : Tensor
        As :func:`to_fractal_nz` returns it.
    sizes : sequence of int
        The shape [..., H, W] of the matrix.
    """
    *batch, height, width = sizes
    columns, rows, tile_rows, c0 = tiles.shape[-4:]
    matrix = tiles.movedim(-4, -2).reshape(*batch, rows * tile_rows, columns * c0)
    return matrix[..., :height, :width].contiguous()


def physical(tensor: Tensor) -> Tensor:
    """Return a copy of what a device has in the storage of a tensor, in the order of its addresses.

    Parameters
    ----------
    tensor : Tensor
        Any CPU tensor. Of a view, the whole storage is returned.

    Returns
    -------
    Tensor
        In FRACTAL_NZ [..., ceil(W / C0), ceil(H / 16), 16, C0], from the shape with which the storage was cast;
        else [elements of the storage]. In the dtype of the tensor: where that is not the dtype of the cast, the
        same bytes, and a last axis of another length.
    """
    noted = noted_format(tensor)
    if noted is None or noted.format is not Format.FRACTAL_NZ:
        return _storage(tensor, tensor.dtype).clone()
    return to_fractal_nz(_storage(tensor, noted.dtype).view(noted.sizes)).view(tensor.dtype)


def device_bytes(operator: str, argument: str, tensor: Tensor) -> Tensor:
    """Return the bytes that a kernel finds behind the address of a contiguous tensor.

    Returns
    -------
    Tensor
        uint8 [bytes of the tensor], sharing the tensor's memory; for a tensor in FRACTAL_NZ a copy,
        uint8 [bytes of the storage].

    Raises
    ------
    NotSimulated
        A view into a storage in FRACTAL_NZ that does not start at its beginning.
    """
    noted = noted_format(tensor)
    if noted is None or noted.format is not Format.FRACTAL_NZ:
        return tensor.view(-1).view(torch.uint8)
    if tensor.storage_offset():
        given = f"a view that starts at element {tensor.storage_offset()} of a storage in FRACTAL_NZ"
        raise NotSimulated(operator, argument, given, "a view from the beginning of the storage")
    return physical(tensor).view(-1).view(torch.uint8)


@contextmanager
def written_bytes(operator: str, argument: str, tensor: Tensor) -> Iterator[Tensor]:
    """Give :func:`device_bytes` to write into; what was written is in the tensor when the block ends.

    Bytes that FRACTAL_NZ has as padding have no place in a CPU tensor; what is written there is forgotten.
    """
    memory = device_bytes(operator, argument, tensor)
    yield memory
    noted = noted_format(tensor)
    if noted is not None and noted.format is Format.FRACTAL_NZ:
        tiles = memory.view(noted.dtype).view(fractal_shape(noted.sizes, noted.dtype))
        _storage(tensor, noted.dtype).copy_(from_fractal_nz(tiles, noted.sizes).view(-1))


def _storage(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a whole storage [elements], shared."""
    return torch.empty(0, dtype=dtype, device=tensor.device).set_(tensor.untyped_storage())
