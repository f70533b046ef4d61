"""Wrong products of integers."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.quant_matmul import (
    biased,
    called,
    composed_quant_matmul,
    npu_quant_matmul,
    offsetted,
    scaled,
    summed,
    written,
)
from npudiff.reference.quant_matmul import QuantMatmulInputs

_BLOCK = 128
"""Elements of a sum that a tile of float32 holds exactly."""


@mutant(
    composed_quant_matmul,
    "ROCm/triton/issues/958: the int32 accumulator becomes float32, which ends at 2**24",
    supports={"output": ("int32",), "recipe": ("extremes", "cancelling")},
)
def sums_in_float32(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Add tiles of every sum in float32."""
    x, weight = inputs.x.float(), inputs.weight.float()
    sums = torch.zeros(len(x), weight.shape[1], device=x.device)
    for start in range(0, len(weight), _BLOCK):
        sums += x[:, start : start + _BLOCK] @ weight[start : start + _BLOCK]
    return written(inputs, biased(inputs, sums))


@mutant(
    composed_quant_matmul,
    "w8a8_static.py 124: the bias of static W8A8 is int32, and belongs to the sums before they are scaled",
    supports={"bias": ("int32",), "output": ("bfloat16", "float16", "int8")},
)
def integer_bias_after_scaling(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Add an int32 bias where a float one belongs."""
    result = scaled(inputs, summed(replace(inputs, bias=None)))
    if inputs.bias is not None:
        result = result + inputs.bias.float()
    if inputs.output_dtype == torch.int8:
        return offsetted(inputs, result).round().clamp(-128, 127).to(torch.int8)
    return result.to(inputs.output_dtype)


@perturbed(
    composed_quant_matmul,
    "QNT-13 vllm-project/vllm-ascend/pull/8220: the bias is given on the first rank only",
    supports={"bias": ("int32", "float32", "bfloat16")},
)
def bias_of_product_left_out(inputs: QuantMatmulInputs) -> QuantMatmulInputs:
    """Do not add the bias."""
    return replace(inputs, bias=None)


@mutant(
    composed_quant_matmul,
    "QNT-10 sgl-project/sglang/pull/31529: the scales of quantised states are discarded",
    supports={"token_scale": (True,)},
)
def token_scale_left_out(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Drop the scales of tokens."""
    of_weight = replace(inputs, token_scale=None)
    result = summed(of_weight).float() * of_weight.scale.float()
    if of_weight.bias is not None and of_weight.bias.is_floating_point():
        result = result + of_weight.bias.float()
    return result.to(inputs.output_dtype)


@perturbed(
    composed_quant_matmul,
    "QNT-02 vllm-project/vllm-ascend/pull/8411: a scale of columns taken along the other axis",
    supports={"scale_per": ("columns",), "columns": range(2, 2**16), "output": ("bfloat16", "float16", "int8")},
)
def scale_of_the_row(inputs: QuantMatmulInputs) -> QuantMatmulInputs:
    """Give each token the scale of the column of its number."""
    taken = torch.arange(len(inputs.x), device=inputs.x.device) % len(inputs.scale)
    return replace(inputs, scale=inputs.scale[taken].unsqueeze(1))


@perturbed(
    composed_quant_matmul,
    "QNT-07 vllm-project/vllm-ascend/issues/7443: scales of the dtype of the model",
    supports={"scale": ("float32",), "output": ("bfloat16", "float16")},
)
def scale_rounded_to_bfloat16(inputs: QuantMatmulInputs) -> QuantMatmulInputs:
    """Round float32 scales."""
    rounded = inputs.scale.to(torch.bfloat16).to(torch.float32)
    return replace(inputs, scale=rounded)


@mutant(
    npu_quant_matmul,
    "QNT-07 vllm-project/vllm-ascend/issues/7443: float16 models have scales of float16",
    supports={"output": ("float16",)},
)
def scale_in_float16(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Give the operator scales of a dtype that it does not take."""
    return called(inputs, inputs.x, inputs.weight, inputs.scale.to(torch.float16))


@perturbed(
    composed_quant_matmul,
    "test_npu_quant_matmul.py 18: a scale is cut to 19 bits where it is applied while writing, and only there",
    supports={"scale": ("float32",), "output": ("float16",), "token_scale": (True,)},
)
def scale_of_19_bits_for_all(inputs: QuantMatmulInputs) -> QuantMatmulInputs:
    """Cut scales where tokens have theirs."""
    kept = (inputs.scale.view(torch.int32) & -(2**13)).view(torch.float32)
    return replace(inputs, scale=kept)


@mutant(
    composed_quant_matmul,
    "test_npu_quant_matmul.py 18: a scale that is applied while writing has 19 bits",
    supports={"output": ("float16",), "token_scale": (False,)},
)
def scale_of_32_bits_for_all(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Use all bits of scales everywhere."""
    return (summed(inputs).float() * inputs.scale).to(inputs.output_dtype)


@mutant(
    composed_quant_matmul,
    "microsoft/onnxruntime/issues/29727: what should saturate at 127 wraps to -128",
    supports={"output": ("int8",)},
)
def int8_output_wraps(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Keep the low eight bits."""
    numbers = offsetted(inputs, scaled(inputs, summed(inputs))).round().to(torch.int32)
    return ((numbers + 128) % 256 - 128).to(torch.int8)


@mutant(
    composed_quant_matmul, "tenstorrent/tt-metal/issues/56526: -128 is never produced", supports={"output": ("int8",)}
)
def int8_output_ends_at_minus_127(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Saturate as symmetric quantisation does."""
    right = composed_quant_matmul(inputs, target)
    return right.clamp(min=-127)
