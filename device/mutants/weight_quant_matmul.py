"""Wrong products with a quantised weight."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.weight_quant_matmul import (
    by_row,
    dequantised,
    multiplied,
    npu_weight_quant_batchmatmul,
    rounded_once,
    summed,
)
from npudiff.model.constraints import Box
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs

_GROUPS: Box = {"scale_per": ("groups",)}
_OFFSETS: Box = {"offset": ("whole", "fraction")}


def of_groups(inputs: WeightQuantMatmulInputs, group: torch.Tensor) -> torch.Tensor:
    """Run with the scale and offset of a given group for each row of the weight."""
    offset = None if inputs.offset is None else inputs.offset[group].float()
    total = inputs.weight.float() if offset is None else inputs.weight.float() + offset
    return multiplied(inputs, (total * inputs.scale[group].float()).to(inputs.x.dtype))


@mutant(
    rounded_once,
    "QNT-08 vllm-project/vllm-ascend/issues/5603: sizes of groups that a kernel is not for",
    supports=_GROUPS,
)
def groups_of_equal_size(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Divide the rows evenly, as if the last group were as large as the others."""
    row = torch.arange(len(inputs.weight), device=inputs.x.device)
    return of_groups(inputs, row * len(inputs.scale) // len(inputs.weight))


@mutant(
    rounded_once,
    "QNT-08 vllm-project/vllm-ascend/issues/5603: groups of 128 rows, whatever their size is",
    supports=_GROUPS,
)
def groups_of_128(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Take 128 for the size of a group."""
    row = torch.arange(len(inputs.weight), device=inputs.x.device)
    return of_groups(inputs, (row // 128).clamp(max=len(inputs.scale) - 1))


@mutant(rounded_once, "onnx/tensorflow-onnx/pull/189: scaled first, and then the offset is added", supports=_OFFSETS)
def offset_of_weight_after_scaling(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Scale the integers, and add the offset to that."""
    products = inputs.weight.float() * by_row(inputs, inputs.scale).float()
    return multiplied(inputs, summed(inputs, products).to(inputs.x.dtype))


@perturbed(
    rounded_once,
    "pytorch/executorch/pull/2374: a zero point is subtracted; the operator's offset is added",
    supports=_OFFSETS,
)
def offset_of_weight_subtracted(inputs: WeightQuantMatmulInputs) -> WeightQuantMatmulInputs:
    """Subtract the offset, as a zero point."""
    offset = None if inputs.offset is None else -inputs.offset
    return replace(inputs, offset=offset)


@mutant(
    rounded_once,
    "QNT-04 vllm-project/vllm-ascend/pull/9625: the integers of a byte in the other order",
    supports={"bits": (4,), "layout": ("row major",)},
)
def pairs_of_weights_swapped(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Exchange the columns of every pair."""
    swapped = inputs.weight.view(len(inputs.weight), -1, 2).flip(2).flatten(1)
    return multiplied(inputs, dequantised(replace(inputs, weight=swapped)))


@mutant(
    rounded_once,
    "moe_methods.py 880-1012: four bits are two's complement here, and not the numbers from 0 to 15",
    supports={"bits": (4,)},
)
def weights_without_sign(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Read four bits as a number from 0 to 15."""
    return multiplied(inputs, dequantised(replace(inputs, weight=inputs.weight & 15)))


@perturbed(rounded_once, "QNT-13 NVIDIA/TensorRT-LLM/pull/12190: the bias is ignored", supports={"bias": (True,)})
def bias_of_linear_left_out(inputs: WeightQuantMatmulInputs) -> WeightQuantMatmulInputs:
    """Do not add the bias."""
    return replace(inputs, bias=None)


@perturbed(
    npu_weight_quant_batchmatmul,
    "QNT-07 vllm-project/vllm-ascend/issues/7039: beside bfloat16 a bias has to be float32",
    supports={"bias": (True,), "dtype": ("bfloat16",)},
)
def bias_in_bfloat16(inputs: WeightQuantMatmulInputs) -> WeightQuantMatmulInputs:
    """Give the operator a bias of the dtype of the states, which it does not take."""
    bias = None if inputs.bias is None else inputs.bias.to(inputs.x.dtype)
    return replace(inputs, bias=bias)


@mutant(rounded_once, "uxlfoundation/oneDNN/pull/3332: float16 products are accumulated in float16")
def sums_in_dtype_of_states(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Add tiles of 8 in the dtype of the states."""
    weight = dequantised(inputs).float()
    total = torch.zeros(len(inputs.x), weight.shape[1], dtype=inputs.x.dtype, device=weight.device)
    for start in range(0, len(weight), 8):
        tile = inputs.x[:, start : start + 8].float() @ weight[start : start + 8]
        total += tile.to(total.dtype)
    return total if inputs.bias is None else (total.float() + inputs.bias.float()).to(total.dtype)
