"""Wrong products with a quantised weight."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.weight_quant_matmul import by_row, called, dequantised, multiplied, rounded_once, summed
from npudiff.model.constraints import Box
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs

_GROUPS: Box = {"scale_per": ("groups",)}
_OFFSETS: Box = {"offset": ("whole", "fraction")}


def of_groups(inputs: WeightQuantMatmulInputs, group: torch.Tensor) -> torch.Tensor:
    """Run with the scale and offset of a given group for each row of the weight."""
    offset = None if inputs.offset is None else inputs.offset[group].float()
    total = inputs.weight.float() if offset is None else inputs.weight.float() + offset
    return multiplied(inputs, (total * inputs.scale[group].float()).to(inputs.x.dtype))


@npudiff.implementation(
    "weight_quant_matmul",
    name="groups_of_equal_size",
    supports=_GROUPS,
    mutant_of="rounded_once",
    wrong="QNT-08 https://github.com/vllm-project/vllm-ascend/issues/5603: sizes of groups that a kernel is not for",
)
def groups_of_equal_size(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Divide the rows evenly, as if the last group were as large as the others."""
    on_device = inputs.to(target.device)
    row = torch.arange(len(on_device.weight), device=on_device.x.device)
    return of_groups(on_device, row * len(on_device.scale) // len(on_device.weight))


@npudiff.implementation(
    "weight_quant_matmul",
    name="groups_of_128",
    supports=_GROUPS,
    mutant_of="rounded_once",
    wrong="QNT-08 https://github.com/vllm-project/vllm-ascend/issues/5603: groups of 128 rows, whatever their size is",
)
def groups_of_128(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Take 128 for the size of a group."""
    on_device = inputs.to(target.device)
    row = torch.arange(len(on_device.weight), device=on_device.x.device)
    return of_groups(on_device, (row // 128).clamp(max=len(on_device.scale) - 1))


@npudiff.implementation(
    "weight_quant_matmul",
    name="offset_of_weight_after_scaling",
    supports=_OFFSETS,
    mutant_of="rounded_once",
    wrong="https://github.com/onnx/tensorflow-onnx/pull/189: scaled first, and then the offset is added",
)
def offset_of_weight_after_scaling(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Scale the integers, and add the offset to that."""
    on_device = inputs.to(target.device)
    products = on_device.weight.float() * by_row(on_device, on_device.scale).float()
    return multiplied(on_device, summed(on_device, products).to(on_device.x.dtype))


@npudiff.implementation(
    "weight_quant_matmul",
    name="offset_of_weight_subtracted",
    supports=_OFFSETS,
    mutant_of="rounded_once",
    wrong="https://github.com/pytorch/executorch/pull/2374: a zero point is subtracted; the operator's offset is added",
)
def offset_of_weight_subtracted(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Subtract the offset, as a zero point."""
    offset = None if inputs.offset is None else -inputs.offset
    return rounded_once(replace(inputs, offset=offset), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "weight_quant_matmul",
    name="pairs_of_weights_swapped",
    supports={"bits": (4,), "layout": ("row major",)},
    mutant_of="rounded_once",
    wrong="QNT-04 https://github.com/vllm-project/vllm-ascend/pull/9625: the integers of a byte in the other order",
)
def pairs_of_weights_swapped(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Exchange the columns of every pair."""
    on_device = inputs.to(target.device)
    swapped = on_device.weight.view(len(on_device.weight), -1, 2).flip(2).flatten(1)
    return multiplied(on_device, dequantised(replace(on_device, weight=swapped)))


@npudiff.implementation(
    "weight_quant_matmul",
    name="weights_without_sign",
    supports={"bits": (4,)},
    mutant_of="rounded_once",
    wrong="moe_methods.py 880-1012: four bits are two's complement here, and not the numbers from 0 to 15",
)
def weights_without_sign(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Read four bits as a number from 0 to 15."""
    on_device = inputs.to(target.device)
    return multiplied(on_device, dequantised(replace(on_device, weight=on_device.weight & 15)))


@npudiff.implementation(
    "weight_quant_matmul",
    name="bias_of_linear_left_out",
    supports={"bias": (True,)},
    mutant_of="rounded_once",
    wrong="QNT-13 https://github.com/NVIDIA/TensorRT-LLM/pull/12190: the bias is ignored",
)
def bias_of_linear_left_out(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Do not add the bias."""
    return rounded_once(replace(inputs, bias=None), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "weight_quant_matmul",
    name="bias_in_bfloat16",
    supports={"bits": (8,), "bias": (True,), "dtype": ("bfloat16",)},
    mutant_of="npu_weight_quant_batchmatmul",
    wrong="QNT-07 https://github.com/vllm-project/vllm-ascend/issues/7039: beside bfloat16 a bias has to be float32",
)
def bias_in_bfloat16(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Give the operator a bias of the dtype of the states, which it does not take."""
    on_device = inputs.to(target.device)
    bias = None if on_device.bias is None else on_device.bias.to(on_device.x.dtype)
    return called(replace(on_device, bias=bias), on_device.weight)


@npudiff.implementation(
    "weight_quant_matmul",
    name="sums_in_dtype_of_states",
    mutant_of="rounded_once",
    wrong="https://github.com/uxlfoundation/oneDNN/pull/3332: float16 products are accumulated in float16",
)
def sums_in_dtype_of_states(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """Add tiles of 8 in the dtype of the states."""
    on_device = inputs.to(target.device)
    weight = dequantised(on_device).float()
    total = torch.zeros(len(on_device.x), weight.shape[1], dtype=on_device.x.dtype, device=weight.device)
    for start in range(0, len(weight), 8):
        tile = on_device.x[:, start : start + 8].float() @ weight[start : start + 8]
        total += tile.to(total.dtype)
    return total if on_device.bias is None else (total.float() + on_device.bias.float()).to(total.dtype)
