"""Wrong products of integers."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.quant_matmul import biased, called, composed_quant_matmul, offsetted, scaled, summed, written
from npudiff.reference.quant_matmul import QuantMatmulInputs

_BLOCK = 128
"""Elements of a sum that a tile of float32 holds exactly."""


@npudiff.implementation(
    "quant_matmul",
    name="sums_in_float32",
    supports={"output": ("int32",), "recipe": ("extremes", "cancelling")},
    mutant_of="composed_quant_matmul",
    wrong="https://github.com/ROCm/triton/issues/958: the int32 accumulator becomes float32, which ends at 2**24",
)
def sums_in_float32(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Add tiles of every sum in float32."""
    on_device = inputs.to(target.device)
    x, weight = on_device.x.float(), on_device.weight.float()
    sums = torch.zeros(len(x), weight.shape[1], device=x.device)
    for start in range(0, len(weight), _BLOCK):
        sums += x[:, start : start + _BLOCK] @ weight[start : start + _BLOCK]
    return written(on_device, biased(on_device, sums))


@npudiff.implementation(
    "quant_matmul",
    name="integer_bias_after_scaling",
    supports={"bias": ("int32",), "output": ("bfloat16", "float16", "int8")},
    mutant_of="composed_quant_matmul",
    wrong="w8a8_static.py 124: the bias of static W8A8 is int32, and belongs to the sums before they are scaled",
)
def integer_bias_after_scaling(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Add an int32 bias where a float one belongs."""
    on_device = inputs.to(target.device)
    result = scaled(on_device, summed(replace(on_device, bias=None)))
    if on_device.bias is not None:
        result = result + on_device.bias.float()
    if inputs.output_dtype == torch.int8:
        return offsetted(on_device, result).round().clamp(-128, 127).to(torch.int8)
    return result.to(inputs.output_dtype)


@npudiff.implementation(
    "quant_matmul",
    name="bias_of_product_left_out",
    supports={"bias": ("int32", "float32", "bfloat16")},
    mutant_of="composed_quant_matmul",
    wrong="QNT-13 https://github.com/vllm-project/vllm-ascend/pull/8220: the bias is given on the first rank only",
)
def bias_of_product_left_out(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Do not add the bias."""
    return composed_quant_matmul(replace(inputs, bias=None), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "quant_matmul",
    name="token_scale_left_out",
    supports={"token_scale": (True,)},
    mutant_of="composed_quant_matmul",
    wrong="QNT-10 https://github.com/sgl-project/sglang/pull/31529: the scales of quantised states are discarded",
)
def token_scale_left_out(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Drop the scales of tokens."""
    on_device = replace(inputs.to(target.device), token_scale=None)
    result = summed(on_device).float() * on_device.scale.float()
    if on_device.bias is not None and on_device.bias.is_floating_point():
        result = result + on_device.bias.float()
    return result.to(inputs.output_dtype)


@npudiff.implementation(
    "quant_matmul",
    name="scale_of_the_row",
    supports={"scale_per": ("columns",), "columns": range(2, 2**16), "output": ("bfloat16", "float16", "int8")},
    mutant_of="composed_quant_matmul",
    wrong="QNT-02 https://github.com/vllm-project/vllm-ascend/pull/8411: a scale of columns taken along the other axis",
)
def scale_of_the_row(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Give each token the scale of the column of its number."""
    on_device = inputs.to(target.device)
    taken = torch.arange(len(on_device.x), device=on_device.x.device) % len(on_device.scale)
    return written(replace(on_device, scale=on_device.scale[taken].unsqueeze(1)), summed(on_device))


@npudiff.implementation(
    "quant_matmul",
    name="scale_rounded_to_bfloat16",
    supports={"scale": ("float32",), "output": ("bfloat16", "float16")},
    mutant_of="composed_quant_matmul",
    wrong="QNT-07 https://github.com/vllm-project/vllm-ascend/issues/7443: scales of the dtype of the model",
)
def scale_rounded_to_bfloat16(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Round float32 scales."""
    rounded = inputs.scale.to(torch.bfloat16).to(torch.float32)
    return composed_quant_matmul(replace(inputs, scale=rounded), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "quant_matmul",
    name="scale_in_float16",
    supports={"bits": (8,), "output": ("float16",)},
    mutant_of="npu_quant_matmul",
    wrong="QNT-07 https://github.com/vllm-project/vllm-ascend/issues/7443: float16 models have scales of float16",
)
def scale_in_float16(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Give the operator scales of a dtype that it does not take."""
    on_device = inputs.to(target.device)
    return called(on_device, on_device.x, on_device.weight, on_device.scale.to(torch.float16))


@npudiff.implementation(
    "quant_matmul",
    name="scale_of_19_bits_for_all",
    supports={"scale": ("float32",), "output": ("float16",), "token_scale": (True,)},
    mutant_of="composed_quant_matmul",
    wrong="test_npu_quant_matmul.py 18: a scale is cut to 19 bits where it is applied while writing, and only there",
)
def scale_of_19_bits_for_all(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Cut scales where tokens have theirs."""
    kept = (inputs.scale.view(torch.int32) & -(2**13)).view(torch.float32)
    return composed_quant_matmul(replace(inputs, scale=kept), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "quant_matmul",
    name="scale_of_32_bits_for_all",
    supports={"output": ("float16",), "token_scale": (False,)},
    mutant_of="composed_quant_matmul",
    wrong="test_npu_quant_matmul.py 18: a scale that is applied while writing has 19 bits",
)
def scale_of_32_bits_for_all(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Use all bits of scales everywhere."""
    on_device = inputs.to(target.device)
    return (summed(on_device).float() * on_device.scale).to(inputs.output_dtype)


@npudiff.implementation(
    "quant_matmul",
    name="int8_output_wraps",
    supports={"output": ("int8",)},
    mutant_of="composed_quant_matmul",
    wrong="https://github.com/microsoft/onnxruntime/issues/29727: what should saturate at 127 wraps to -128",
)
def int8_output_wraps(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Keep the low eight bits."""
    on_device = inputs.to(target.device)
    numbers = offsetted(on_device, scaled(on_device, summed(on_device))).round().to(torch.int32)
    return ((numbers + 128) % 256 - 128).to(torch.int8)


@npudiff.implementation(
    "quant_matmul",
    name="int8_output_ends_at_minus_127",
    supports={"output": ("int8",)},
    mutant_of="composed_quant_matmul",
    wrong="https://github.com/tenstorrent/tt-metal/issues/56526: -128 is never produced",
)
def int8_output_ends_at_minus_127(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Saturate as symmetric quantisation does."""
    right: torch.Tensor = composed_quant_matmul(inputs, target)
    return right.clamp(min=-127)
