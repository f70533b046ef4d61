"""Products of integers as vllm-ascend and sglang call them: W8A8 and W4A4 linear layers.

Sources: vllm-ascend, ``quantization/methods/w8a8_static.py``, ``w8a8_dynamic.py`` and ``w4a4_laos_dynamic.py``; sglang
0.5.23, ``hardware_backend/npu/quantization/linear_method_npu.py`` (389-392 for four bits).
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.scale_pack import cut
from npudiff.device.ascend.storage_format import FRACTAL_NZ, format_cast
from npudiff.model.constraints import Box
from npudiff.reference.quant_matmul import QuantMatmulInputs

WHOLE_TILES: Box = {"bits": (8,), "inner": range(16, 2**16, 16), "columns": range(32, 2**16, 32)}
"""Weights of int8 that sglang casts to FRACTAL_NZ; others stay as they are (``hardware_backend/npu/utils.py``)."""


def called(inputs: QuantMatmulInputs, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Call the operator; int8 output is what it returns without being asked for another."""
    result: torch.Tensor = torch.ops.npu.npu_quant_matmul(
        x,
        weight,
        scale,
        offset=inputs.offset,
        pertoken_scale=inputs.token_scale,
        bias=inputs.bias,
        output_dtype=None if inputs.output_dtype == torch.int8 else inputs.output_dtype,
    )
    return result


@implementation("quant_matmul", supports={"bits": (8,)}, on_device=True, graph=True)
def npu_quant_matmul(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_quant_matmul with scales as they are."""
    return called(inputs, inputs.x, inputs.weight, inputs.scale)


@implementation(
    "quant_matmul",
    supports={"bits": (8,), "output": ("float16", "int8"), "token_scale": (False,), "offset": ("none",)},
    on_device=True,
    graph=True,
)
def npu_quant_matmul_packed_scales(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_quant_matmul with scales that npu_trans_quant_param packed, as float16 models have them."""
    scale = torch.ops.npu.npu_trans_quant_param(inputs.scale)
    return called(inputs, inputs.x, inputs.weight, scale)


@implementation("quant_matmul", supports=WHOLE_TILES, on_device=True, graph=True)
def npu_quant_matmul_nz(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_quant_matmul on a weight that was cast to FRACTAL_NZ after loading."""
    return called(inputs, inputs.x, format_cast(inputs.weight.contiguous(), FRACTAL_NZ, target), inputs.scale)


@implementation("quant_matmul", supports={"bits": (4,)}, on_device=True, graph=True)
def npu_quant_matmul_int4(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """npu_quant_matmul on words of eight integers; a transposed weight is packed along its own rows."""
    x = words(inputs.x)
    if inputs.weight.is_contiguous():
        return called(inputs, x, words(inputs.weight), inputs.scale)
    return called(inputs, x, words(inputs.weight.t()).t(), inputs.scale)


def words(integers: torch.Tensor) -> torch.Tensor:
    """Integers of four bits, eight to a word along the last axis."""
    packed: torch.Tensor = torch.ops.npu.npu_convert_weight_to_int4pack(integers.to(torch.int32).contiguous())
    return packed


@implementation("quant_matmul", on_device=True, graph=True)
def composed_quant_matmul(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """Composed: a product of int32, then float32."""
    return written(inputs, summed(inputs))


def summed(inputs: QuantMatmulInputs) -> torch.Tensor:
    """Sums of products and an int32 bias, int32."""
    return biased(inputs, inputs.x.to(torch.int32) @ inputs.weight.to(torch.int32))


def biased(inputs: QuantMatmulInputs, sums: torch.Tensor) -> torch.Tensor:
    """Sums and an int32 bias, of the dtype of the sums."""
    if inputs.bias is None or inputs.bias.is_floating_point():
        return sums
    return sums + inputs.bias.to(sums.dtype)


def written(inputs: QuantMatmulInputs, sums: torch.Tensor) -> torch.Tensor:
    """What becomes of sums."""
    if inputs.output_dtype == torch.int32:
        return sums.to(torch.int32)
    if inputs.output_dtype == torch.int8:
        return offsetted(inputs, scaled(inputs, sums)).round().clamp(-128, 127).to(torch.int8)
    result = scaled(inputs, sums)
    if inputs.bias is not None and inputs.bias.is_floating_point():
        result = result + inputs.bias.float()
    return result.to(inputs.output_dtype)


def scaled(inputs: QuantMatmulInputs, sums: torch.Tensor) -> torch.Tensor:
    """Sums times all scales, float32; the operator reads 19 bits of a scale where it applies it while writing."""
    scale = cut(inputs.scale, 0).to(torch.int32).view(torch.float32) if inputs.scale_is_cut else inputs.scale.float()
    result = sums.float() * scale
    return result if inputs.token_scale is None else result * inputs.token_scale.unsqueeze(1)


def offsetted(inputs: QuantMatmulInputs, numbers: torch.Tensor) -> torch.Tensor:
    """Numbers and their offset."""
    return numbers if inputs.offset is None else numbers + inputs.offset
