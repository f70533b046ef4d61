"""Linear layers of sglang in W8A8: ``hardware_backend/npu/quantization/linear_method_npu.py``."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.hardware_backend.npu.quantization.linear_method_npu import (
    NPUW8A8Int8DynamicLinearMethod,
    NPUW8A8Int8LinearMethod,
)

from npudiff import Target, implementation
from npudiff.device.backends.sglang.world import alone
from npudiff.model.constraints import Box
from npudiff.reference.quant_matmul import QuantMatmulInputs

_INT8: Box = {"bits": (8,), "scale_per": ("columns",), "offset": ("none",)}


def _parameter(values: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.contiguous(), requires_grad=False)


@implementation(
    "quant_matmul",
    name="NPUW8A8Int8DynamicLinearMethod",
    supports={**_INT8, "token_scale": (True,), "output": ("bfloat16",), "bias": ("none", "bfloat16", "float32")},
    on_device=True,
)
def dynamic(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """NPUW8A8Int8DynamicLinearMethod of rows that were quantised before, as MLA's preprocessing hands them on."""
    alone()
    method, layer = NPUW8A8Int8DynamicLinearMethod(), torch.nn.Module()
    held: Any = layer
    held.weight, held.weight_scale = _parameter(inputs.weight.t()), _parameter(inputs.scale.unsqueeze(1))
    held.weight_offset = _parameter(torch.zeros_like(held.weight_scale))
    method.process_weights_after_loading(layer)
    answer: torch.Tensor = method.apply(layer, (inputs.x, inputs.token_scale), inputs.bias)
    return answer


@implementation(
    "quant_matmul",
    name="NPUW8A8Int8LinearMethod",
    supports={**_INT8, "token_scale": (False,), "output": ("bfloat16", "float16"), "bias": ("int32",)},
    on_device=True,
)
def static(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """NPUW8A8Int8LinearMethod of states that are whole numbers, with one scale for all of them, which is 1."""
    alone()
    method, layer = NPUW8A8Int8LinearMethod(), torch.nn.Module()
    held: Any = layer
    dtype = inputs.output_dtype
    held.weight, held.weight_scale = _parameter(inputs.weight.t()), _parameter(inputs.scale.unsqueeze(1))
    held.input_scale = _parameter(torch.ones(1, dtype=dtype, device=inputs.x.device))
    held.input_offset = _parameter(torch.zeros(1, dtype=dtype, device=inputs.x.device))
    packed = dtype == torch.float16  # as checkpoints of float16 have it
    scale = torch.ops.npu.npu_trans_quant_param(inputs.scale.float()) if packed else inputs.scale
    held.deq_scale = _parameter(scale)
    held.quant_bias = None if inputs.bias is None else _parameter(inputs.bias)
    method.process_weights_after_loading(layer)
    answer: torch.Tensor = method.apply(layer, inputs.x.to(dtype))
    return answer
