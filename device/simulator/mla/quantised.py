"""The arithmetic of int8 in ``npu_mla_prolog``: exact sums, scales that multiply them, and five ways to int8.

Source: CANN's kernel for A2 and A3 (``mla_prolog_vector_comm.h``, ``service_dynamic_quant_qn_mul_qr.h``): everything is
float32, and int8 comes by way of int32, half to even; the query's by way of float16, halves away from zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.fused_attention.rounding import narrow
from npudiff.device.simulator.quantisation.integers import INT8, saturated
from npudiff.device.simulator.quantisation.products import integer_product

_LARGEST_PRODUCT = 2**14
_ROWS = 1024
_LARGEST = 127.0


def int8_product(x: Tensor, weight: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
    """Multiply matrices of int8, and their sums by a scale per row, then by one per column.

    Parameters
    ----------
    x : Tensor
        int8 [rows, inner].
    weight : Tensor
        int8 [inner, columns].
    row_scale : Tensor
        float32 [rows, 1].
    column_scale : Tensor
        float32 [1, columns].

    Returns
    -------
    Tensor
        float32 [rows, columns], each multiplication rounded.
    """
    total = torch.zeros(len(x), weight.shape[1], dtype=torch.int64)
    for start in range(0, len(weight), _ROWS):  # sums over that many are exact in float32
        piece = slice(start, start + _ROWS)
        total += integer_product(x[:, piece], weight[piece], _LARGEST_PRODUCT)
    return total.float() * row_scale * column_scale


def int8(values: Tensor) -> Tensor:
    """Round float32 to int8."""
    return saturated(values, INT8, torch.int8)


def per_row(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the rows of float32 [rows, columns]: int8, and scales float32 [rows, 1]."""
    largest = values.abs().amax(-1, keepdim=True)
    return int8(values * (_LARGEST / largest)), largest / _LARGEST


def per_head(query: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each head of bfloat16 [tokens, heads, columns]: int8, and scales float32 [tokens, heads, 1]."""
    values = query.float()
    largest = values.abs().amax(-1, keepdim=True)
    half = narrow(values * (_LARGEST / largest), torch.float16).float()
    return saturated(half, INT8, torch.int8, "half_away_from_zero"), largest / _LARGEST


def per_tile(values: Tensor, tile: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Quantise tiles of float32 [rows, columns]: int8, and scales float32 [rows, columns / tile].

    Numbers beyond ``alpha`` times the largest of their tile are cut there, and the scale is that of what is left.
    """
    tiles = values.view(len(values), values.shape[1] // tile, tile)
    limit = tiles.abs().amax(-1, keepdim=True) * alpha
    scale = limit * torch.tensor(1 / _LARGEST)
    quantised = int8(tiles.minimum(limit).maximum(-limit) * (1 / scale))
    return quantised.flatten(1), scale.squeeze(-1)
