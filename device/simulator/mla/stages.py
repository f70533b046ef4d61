"""The arithmetic of both operators: products with fp32 accumulators, the norm, the turning part.

16-bit products are summed in float32, in pieces of the inner axis: which order a device takes is not said. int8
products are summed exactly, as int32 accumulators do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import CannProfile
from npudiff.device.simulator.rotary.rotation import rotate_half, turn

# Elements of a weight that become float32 at a time: a whole weight of 7168 x 2112 would be 60 MB, and most of the
# time would go into memory that is touched for the first time.
_PIECE = 2**20

# int8 x int8 is at most 2**14, so sums over 1024 of them are exact in float32.
_EXACT_ROWS = 1024
TILE_COLUMNS = 32
"""C0 of int8: columns of a tile of a weight in NZ order."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply matrices of 16 bit.

    Parameters
    ----------
    x : Tensor
        [rows, inner].
    weight : Tensor
        [inner, columns].

    Returns
    -------
    Tensor
        float32 [rows, columns], not rounded to 16 bit.
    """
    total = x.new_zeros((len(x), weight.shape[1]), dtype=torch.float32)
    step = max(64, _PIECE // weight.shape[1])
    for start in range(0, len(weight), step):
        piece = slice(start, start + step)
        total.addmm_(x[:, piece].float(), weight[piece].float())
    return total


def product_per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply every head of x [tokens, heads, inner] by its own matrix of weight [heads, inner, columns].

    Returns
    -------
    Tensor
        float32 [tokens, heads, columns], not rounded to 16 bit.
    """
    total = x.new_empty((*x.shape[:2], weight.shape[2]), dtype=torch.float32)
    step = max(1, _PIECE // weight[0].numel())
    for start in range(0, len(weight), step):
        heads = slice(start, start + step)
        by_head = torch.bmm(x[:, heads].float().transpose(0, 1), weight[heads].float())
        total[:, heads] = by_head.transpose(0, 1)
    return total


def product_of_int8(x: Tensor, tiles: Tensor) -> Tensor:
    """Multiply int8 by a weight in NZ order, exactly.

    Parameters
    ----------
    x : Tensor
        int8 [rows, inner], inner a multiple of 32.
    tiles : Tensor
        int8 [inner / 32, columns, 32]: the transposed weight [columns, inner], cut into columns of tiles.

    Returns
    -------
    Tensor
        int32 [rows, columns].
    """
    total = x.new_zeros((len(x), tiles.shape[1]), dtype=torch.int32)
    step, width = _EXACT_ROWS // TILE_COLUMNS, _PIECE // _EXACT_ROWS
    for start in range(0, len(tiles), step):
        activations = x[:, start * TILE_COLUMNS : (start + step) * TILE_COLUMNS].float()
        for first in range(0, tiles.shape[1], width):
            columns = tiles[start : start + step, first : first + width].transpose(0, 1).flatten(1)
            total[:, first : first + width] += (activations @ columns.float().t()).to(torch.int32)
    return total


def handed_on(values: Tensor, dtype: torch.dtype, profile: CannProfile) -> Tensor:
    """Return what the next stage sees of a product: float32, rounded to 16 bit before or not."""
    return values.to(dtype).float() if profile.mla_products == "rounded" else values


def rms(values: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """Return ``x / sqrt(mean(x * x) + epsilon) * gamma`` over the last axis, float32 throughout."""
    mean = (values * values).sum(-1, keepdim=True) * (1.0 / values.shape[-1])
    return values / (mean + epsilon).sqrt() * gamma.float()


def turned(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn float32 values in half order by angles in half order, 32 of them twice; float32."""
    return turn(values, rotate_half(values), cos.float(), sin.float())
