"""FRACTAL_NZ: how it orders the elements of matrices.

A matrix [H, W] is cut into tiles of 16 x C0; the tiles lie column by column, each row-major, and both axes are
padded with zeros. Source: ``InferShapeNDToNZ`` in Ascend/pytorch, ``torch_npu/csrc/framework/FormatHelper.cpp``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

_TILE_ROWS = 16
_TILE_BYTES = 32


def tile_width(dtype: torch.dtype) -> int:
    """Return C0: 32 for one byte, 16 for all else, since torch_npu counts wider dtypes as two bytes."""
    return _TILE_BYTES // min(dtype.itemsize, 2)


def fractal_shape(sizes: Sequence[int], dtype: torch.dtype, c0: int | None = None) -> tuple[int, ...]:
    """Return the shape [..., ceil(W / C0), ceil(H / 16), 16, C0] that [..., H, W] has in FRACTAL_NZ."""
    *batch, height, width = sizes
    c0 = c0 or tile_width(dtype)
    return (*batch, -(-width // c0), -(-height // _TILE_ROWS), _TILE_ROWS, c0)


def to_fractal_nz(matrix: Tensor, c0: int | None = None) -> Tensor:
    """Reorder a matrix.

    Parameters
    ----------
    matrix : Tensor
        [..., H, W] of any dtype.
    c0 : int, optional
        Columns of a tile; by default those of the dtype.

    Returns
    -------
    Tensor
        [..., ceil(W / C0), ceil(H / 16), 16, C0], contiguous; 0 where the matrix has no element.
    """
    *batch, columns, rows, tile_rows, width = fractal_shape(matrix.shape, matrix.dtype, c0)
    padded = matrix.new_zeros(*batch, rows * tile_rows, columns * width)
    padded[..., : matrix.shape[-2], : matrix.shape[-1]] = matrix
    tiles = padded.view(*batch, rows, tile_rows, columns, width)
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
