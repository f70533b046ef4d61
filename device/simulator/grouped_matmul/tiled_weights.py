"""Weights in FRACTAL_NZ: those whose five axes are those of the tiles, and those that are no whole tiles.

op-plugin takes a tensor of five axes as FRACTAL_NZ whatever its format says, and its tests give both a view of a weight
that was cast and a tensor that was permuted by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.cache.fractal import from_fractal_nz
from npudiff.device.simulator.cache.physical import physical
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul.int4 import PER_WORD
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.argument_checks import ArgumentChecks

TILED_RANK = 5
_TILE_ROWS = 16
_TILE_BYTES = 32


def matrices(check: ArgumentChecks, argument: str, weight: Tensor) -> Tensor:
    """Return a weight as matrices.

    Parameters
    ----------
    check : ArgumentChecks
        Of the operator.
    argument : str
        What the operator calls the weight.
    weight : Tensor
        [E, N / C0, K / 16, 16, C0], with 32 bytes in C0, as its bytes lie on a device; of another rank it is returned
        as it is.

    Returns
    -------
    Tensor
        [E, K, N].

    Raises
    ------
    OperatorRejected
        Five axes that are no tiles.
    NotSimulated
        Tiles that are not contiguous.
    """
    if weight.dim() != TILED_RANK:
        return weight
    width = _TILE_BYTES // weight.itemsize
    tile = (_TILE_ROWS, width)
    check.shape(argument, weight, (-1, -1, -1, *tile), meaning=f"[E, N / {width}, K / 16, 16, {width}]")
    check.simulated_contiguous("contiguous tiles", **{argument: weight})
    first = weight.storage_offset()
    tiles = physical(weight).view(-1)[first : first + weight.numel()].view(weight.shape)
    experts, columns, rows = weight.shape[:3]
    return from_fractal_nz(tiles, (experts, rows * _TILE_ROWS, columns * width))


def check_whole_tiles(check: ArgumentChecks, argument: str, weight: Tensor) -> None:
    """Refuse matrices [..., K, N] in FRACTAL_NZ that are no whole tiles: 16 rows of 32 bytes, of int4 too.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    """
    if active_profile().gmm_unaligned_tiles == "padded" or format_of(weight) is not Format.FRACTAL_NZ:
        return
    columns = weight.shape[-1] * (PER_WORD if weight.dtype == torch.int32 else 1)
    width = {torch.int8: 32, torch.int32: 64}.get(weight.dtype, 16)
    if weight.shape[-2] % _TILE_ROWS or columns % width:
        given = f"of shape {list(weight.shape)} in FRACTAL_NZ"
        allowed = f"multiples of {_TILE_ROWS} rows and {width} columns"
        raise check.rejected(argument, given, allowed, ErrorCode.TILING)
