"""Products with a quantised weight as vllm-ascend and sglang call them: W8A16 and W4A16 linear layers, dense W4A8.

Sources: vllm-ascend, ``quantization/methods/w8a16.py`` and ``w4a8.py``; sglang 0.5.23,
``hardware_backend/npu/quantization/linear_method_npu.py`` (389-392).
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.quant_matmul import WHOLE_TILES, words
from npudiff.device.ascend.storage_format import FRACTAL_NZ, format_cast
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs


def called(inputs: WeightQuantMatmulInputs, weight: torch.Tensor) -> torch.Tensor:
    """Call the operator."""
    result: torch.Tensor = torch.ops.npu.npu_weight_quant_batchmatmul(
        inputs.x,
        weight,
        inputs.scale,
        antiquant_offset=inputs.offset,
        bias=inputs.bias,
        antiquant_group_size=inputs.group_size,
    )
    return result


@implementation("weight_quant_matmul", supports={"bits": (8,)}, on_device=True, graph=True)
def npu_weight_quant_batchmatmul(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_weight_quant_batchmatmul on int8."""
    return called(inputs, inputs.weight)


@implementation("weight_quant_matmul", supports=WHOLE_TILES, on_device=True, graph=True)
def npu_weight_quant_batchmatmul_nz(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_weight_quant_batchmatmul on a weight that was cast to FRACTAL_NZ after loading."""
    return called(inputs, format_cast(inputs.weight.contiguous(), FRACTAL_NZ, target))


PACKED = (
    {"bits": (4,), "layout": ("row major",)},
    {"bits": (4,), "layout": ("transposed",), "inner": range(9, 2**16)},
)
"""Columns of one word lie in memory as rows of one word do: nobody can tell that they are transposed."""


@implementation("weight_quant_matmul", supports=PACKED, on_device=True, graph=True)
def npu_weight_quant_batchmatmul_int4(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_weight_quant_batchmatmul on words of eight integers; a transposed weight is packed along its own rows."""
    if inputs.weight.is_contiguous():
        return called(inputs, words(inputs.weight))
    return called(inputs, words(inputs.weight.t()).t())


@implementation("weight_quant_matmul", on_device=True, graph=True)
def rounded_as_it_goes(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Composed: the weight dequantised in the dtype of the states."""
    total = summed(inputs, inputs.weight.to(inputs.x.dtype))
    return multiplied(inputs, total * by_row(inputs, inputs.scale))


@implementation("weight_quant_matmul", on_device=True, graph=True)
def rounded_once(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Composed: the weight dequantised in float32, and rounded to the dtype of the states."""
    return multiplied(inputs, dequantised(inputs))


def by_row(inputs: WeightQuantMatmulInputs, numbers: torch.Tensor) -> torch.Tensor:
    """Scales or offsets of each row of the weight."""
    if not inputs.group_size:
        return numbers
    return numbers.repeat_interleave(inputs.group_size, dim=0)[: len(inputs.weight)]


def summed(inputs: WeightQuantMatmulInputs, weight: torch.Tensor) -> torch.Tensor:
    """A weight and its offset, in the dtype of the weight."""
    return weight if inputs.offset is None else weight + by_row(inputs, inputs.offset).to(weight.dtype)


def dequantised(inputs: WeightQuantMatmulInputs) -> torch.Tensor:
    """The weight as floats, float32 rounded to the dtype of the states."""
    scale = by_row(inputs, inputs.scale).float()
    return (summed(inputs, inputs.weight.float()) * scale).to(inputs.x.dtype)


def multiplied(inputs: WeightQuantMatmulInputs, weight: torch.Tensor) -> torch.Tensor:
    """Product and bias, accumulated in float32 and rounded once."""
    result = inputs.x.float() @ weight.float()
    if inputs.bias is not None:
        result = result + inputs.bias.float()
    return result.to(inputs.x.dtype)


@implementation("weight_quant_matmul", supports={"scale_per": ("tensor", "columns")}, on_device=True, graph=True)
def scaled_afterwards(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Composed: products of the integers themselves, and their sums scaled, which groups do not allow."""
    sums = inputs.x.float() @ summed(inputs, inputs.weight.float()) * inputs.scale.float()
    if inputs.bias is not None:
        sums = sums + inputs.bias.float()
    return sums.to(inputs.x.dtype)
