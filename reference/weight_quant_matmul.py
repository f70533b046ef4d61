"""Products of floats with a quantised weight, which is turned into floats first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.inexact import Inexact
from npudiff.reference.linear import product
from npudiff.reference.quant_matmul import RANGES
from npudiff.reference.views import moved_inputs

BIAS_DTYPES = {torch.float16: torch.float16, torch.bfloat16: torch.float32}
"""Dtype of a bias, by that of the states."""


@dataclass(frozen=True)
class WeightQuantMatmulInputs:
    """States, and a quantised weight with what its integers are worth."""

    x: torch.Tensor
    """``[tokens, inner]``, bfloat16 or float16; its rows may be slices of wider ones."""
    weight: torch.Tensor
    """int8 ``[inner, columns]``; it may be a transposed view. Integers of four bits stand one in each element."""
    scale: torch.Tensor
    """``[1]``, ``[columns]`` or ``[groups, columns]`` of the dtype of ``x``."""
    offset: torch.Tensor | None
    """Of the shape and dtype of ``scale``: added to the integers before they are scaled."""
    bias: torch.Tensor | None
    """``[columns]``: float16 for float16, float32 for bfloat16."""
    group_size: int = 0
    """Rows of the weight that share a scale, the last of them perhaps fewer; 0 where there are no groups."""
    bits: int = 8
    """8 or 4."""

    def to(self, device: str | torch.device) -> WeightQuantMatmulInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def weight_quant_matmul(inputs: WeightQuantMatmulInputs) -> dict[str, Expected]:
    """Return ``x @ ((weight + offset) * scale) + bias``, scale and offset of row k being those of group k // size.

    Source: documentation of ``npu_weight_quant_batchmatmul``; the groups are those of Frantar et al., "GPTQ", 2023,
    section 3.

    Returns
    -------
    dict
        ``output``: ``[tokens, columns]`` of the dtype of ``x``.

    Raises
    ------
    ValueError
        If shapes, dtypes or the size of a group contradict each other, or integers have more bits than they should.

    Notes
    -----
    A correct device rounds the dequantised weight to the dtype of ``x``: after the sum with the offset, after the
    product with the scale, after both, as op-plugin's own test does, or not at all. Which one is not documented. Each
    of these weights is known, and so is what its roundings add up to in every element of the output: the largest
    counts. They are no independent errors, as equal integers round alike. Then the device accumulates in float32, adds
    the bias there, and rounds once.
    """
    _validate(inputs)
    dtype = inputs.x.dtype
    scale, offset = _by_row(inputs, inputs.scale), _by_row(inputs, inputs.offset)
    result = dequantised_product(inputs.x.to(torch.float64), inputs.weight.to(torch.float64) + offset, scale, dtype)
    if inputs.bias is not None:
        result = result.plus(Inexact.exact(inputs.bias)).in_float32()
    result = result.stored(dtype)
    return {"output": Expected(result.value, result.error, dtype)}


def dequantised_product(x: torch.Tensor, total: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Inexact:
    """Return rows times a weight that a device dequantises first, as float32 sums.

    Parameters
    ----------
    x : torch.Tensor
        float64 ``[rows, inner]``.
    total : torch.Tensor
        float64 ``[inner, columns]``: integers and their offsets.
    scale : torch.Tensor
        float64, broadcasts to ``total``.
    dtype : torch.dtype
        To which a device may round sum and product.
    """
    exact = product(x, total * scale, torch.float32)
    moved = torch.zeros_like(exact.value)
    for weight in _stored(total, scale, dtype):
        moved = torch.maximum(moved, (x @ (weight - total * scale)).abs())
    return Inexact(exact.value, exact.independent + moved)


def _stored(total: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The weights that a device may have, float64: it computes in float32, which rounds as well where it must."""
    total, scale = total.to(torch.float32), scale.to(torch.float32)
    for summed in (total, total.to(dtype).to(torch.float32)):
        yield (summed * scale).to(dtype).to(torch.float64)
        yield (summed * scale).to(torch.float64)


def _by_row(inputs: WeightQuantMatmulInputs, numbers: torch.Tensor | None) -> torch.Tensor:
    """Scales or offsets as they apply to the weight, float64, broadcast to it; zeros where there are none."""
    inner, columns = inputs.weight.shape
    if numbers is None:
        return torch.zeros(1, 1, dtype=torch.float64)
    wide = numbers.to(torch.float64)
    if not inputs.group_size:
        return wide.unsqueeze(0)
    group = torch.div(torch.arange(inner), inputs.group_size, rounding_mode="floor")
    return wide[group].expand(inner, columns)


def _validate(inputs: WeightQuantMatmulInputs) -> None:
    (inner, columns), dtype, size = inputs.weight.shape, inputs.x.dtype, inputs.group_size
    if dtype not in BIAS_DTYPES or inputs.bits not in RANGES:
        raise ValueError(f"no states of {dtype} or integers of {inputs.bits} bits")
    low, high = RANGES[inputs.bits]
    if inputs.weight.dtype != torch.int8 or not low <= int(inputs.weight.min()) <= int(inputs.weight.max()) <= high:
        raise ValueError(f"weight must hold integers of {inputs.bits} bits in int8")
    if inputs.x.shape[1] != inner:
        raise ValueError(f"weight must have {inputs.x.shape[1]} rows, got {inner}")
    if size and not (size % 32 == 0 and 32 <= size < inner):
        raise ValueError(f"group_size is 0 or a multiple of 32 in 32..{inner - 1}, got {size}")
    shapes = [(-(-inner // size), columns)] if size else [(1,), (columns,)]
    if tuple(inputs.scale.shape) not in shapes or inputs.scale.dtype != dtype:
        raise ValueError(f"scale must be {' or '.join(map(str, shapes))} of {dtype}, got {list(inputs.scale.shape)}")
    if inputs.offset is not None and (inputs.offset.shape != inputs.scale.shape or inputs.offset.dtype != dtype):
        raise ValueError(f"offset must be {list(inputs.scale.shape)} of {dtype}, got {list(inputs.offset.shape)}")
    bias = inputs.bias
    if bias is not None and (tuple(bias.shape) != (columns,) or bias.dtype != BIAS_DTYPES[dtype]):
        raise ValueError(f"bias must be [{columns}] of {BIAS_DTYPES[dtype]}, got {list(bias.shape)} of {bias.dtype}")
