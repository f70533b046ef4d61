"""Linear layers of sglang in W8A8 and W4A4: ``hardware_backend/npu/quantization/linear_method_npu.py``."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.hardware_backend.npu.quantization.linear_method_npu import (
    NPUW8A8Int8DynamicLinearMethod,
    NPUW8A8Int8LinearMethod,
)
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w4a4_int4 import ModelSlimW4A4Int4
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8 import ModelSlimW8A8Int8

from npudiff import Target, implementation
from npudiff.device.backends.dynamic_linear import of_rows
from npudiff.device.backends.sglang.world import alone, environment, filled, flags_of
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


_ROWS: Box = {"offset": ("none",), "scale_per": ("columns",), "inner": range(1, 2**15 - 64)}
"""Inner sizes are doubled here, and the operator takes less than 2**16."""

PACKING = "SGLANG_NPU_W4A4_NEW_PACKING"
"""Whether a checkpoint has two int4 of neighbouring columns in a byte, or each in one."""


def _rows(scheme: Any, inputs: QuantMatmulInputs, *, packed: bool = False) -> torch.Tensor:  # noqa: ANN401 - sglang's
    """Load a weight of a checkpoint into the parameters that a scheme makes, and apply it to rows of floats."""
    alone()
    dtype = inputs.output_dtype

    def layer(weight: torch.Tensor, scale: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        made, (inner, columns) = torch.nn.Module(), weight.shape
        with torch.device(states.device):
            scheme.create_weights(made, inner, [columns], inner, columns, dtype)
        values = weight.t().contiguous()
        given = {
            "weight": values[1::2] << 4 | values[0::2] & 15 if packed else values,
            "weight_scale": scale.unsqueeze(1),
            "weight_offset": torch.zeros_like(scale).unsqueeze(1),
        }
        for name, one in given.items():
            filled(getattr(made, name), one)
        scheme.process_weights_after_loading(made)
        answer: torch.Tensor = scheme.apply_weights(made, states, inputs.bias)
        return answer

    with environment(flags_of(inputs)):
        return of_rows(inputs, dtype, layer)


@implementation(
    "quant_matmul",
    name="ModelSlimW8A8Int8_dynamic",
    supports=[
        {**_ROWS, "bits": (8,), "output": ("bfloat16",), "scale": ("bfloat16",), "token_scale": (False,),
         "bias": ("none", "bfloat16")},
        {**_ROWS, "bits": (8,), "output": ("float16",), "scale": ("float32",), "token_scale": (False,),
         "bias": ("none",)},
    ],
    on_device=True,
)  # fmt: skip
def of_int8_rows(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """ModelSlimW8A8Int8 of a dynamic checkpoint, whose scales are loaded in the model's dtype."""
    return _rows(ModelSlimW8A8Int8({".weight": "W8A8_DYNAMIC"}, ""), inputs)


@implementation(
    "quant_matmul",
    name="ModelSlimW4A4Int4",
    supports={
        **_ROWS, "bits": (4,), "output": ("float16",), "token_scale": (True,), "bias": ("none",), "tokens": range(1, 9),
    },
    options={PACKING: ("0", "1")},
    on_device=True,
)  # fmt: skip
def of_int4_rows(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """ModelSlimW4A4Int4: int4 of rows by int4, with scales of tokens in calls of their own.

    Its parameters hold scales in the model's dtype, and those of cases are float32: bfloat16 would round them.
    """
    scheme = ModelSlimW4A4Int4({".weight": "W4A4_DYNAMIC"}, "")
    return _rows(scheme, inputs, packed=flags_of(inputs)[PACKING] == "1")
