"""Linear layers of integers by integers of vllm-ascend: ``w8a8_*.py`` and ``w4a4_*.py`` of ``quantization/methods``."""

from __future__ import annotations

from typing import Any

import torch
from vllm_ascend.quantization.methods.w4a4_laos_dynamic import AscendW4A4LaosDynamicLinearMethod
from vllm_ascend.quantization.methods.w8a8_dynamic import AscendW8A8DynamicLinearMethod
from vllm_ascend.quantization.methods.w8a8_static import AscendW8A8LinearMethod

from npudiff import Target, implementation
from npudiff.device.backends.dynamic_linear import of_rows
from npudiff.device.backends.vllm_ascend.linear_world import NZ, applied
from npudiff.device.backends.vllm_ascend.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.quant_matmul import QuantMatmulInputs

_STATIC: Box = {
    "bits": (8,), "output": ("bfloat16", "float16"), "token_scale": (False,), "offset": ("none",),
    "bias": ("none", "int32"), "scale": ("float32",), "scale_per": ("columns",),
}  # fmt: skip


@implementation("quant_matmul", name="AscendW8A8LinearMethod", supports=_STATIC, options=NZ, on_device=True)
def of_int8(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """AscendW8A8LinearMethod on states that are quantised already, with scales as msModelSlim has them."""
    columns = inputs.weight.shape[1]
    half = inputs.output_dtype == torch.float16
    one = inputs.scale.new_ones(1).to(inputs.output_dtype)
    tensors = {
        "weight": inputs.weight.t(),
        "input_scale": one,
        "input_offset": torch.zeros_like(one, dtype=torch.int8),
        "quant_bias": torch.zeros(columns, dtype=torch.int32, device=one.device)
        if inputs.bias is None
        else inputs.bias,
        "deq_scale": torch.ops.npu.npu_trans_quant_param(inputs.scale) if half else inputs.scale,
        "weight_scale": one.repeat(columns).unsqueeze(1),
        "weight_offset": torch.zeros_like(one).repeat(columns).unsqueeze(1),
    }
    nz = options_of(inputs)["weight_nz_mode"]
    return applied(AscendW8A8LinearMethod(), tensors, inputs.x, None, nz, inputs.output_dtype)


_ROWS: Box = {"offset": ("none",), "scale_per": ("columns",), "inner": range(1, 2**15 - 64)}
"""Inner sizes are doubled here, and the operator takes less than 2**16."""
_DYNAMIC: tuple[Box, ...] = (
    {**_ROWS, "bits": (8,), "output": ("bfloat16",), "scale": ("bfloat16",), "token_scale": (False,),
     "bias": ("none", "bfloat16")},
    {**_ROWS, "bits": (8,), "output": ("float16",), "scale": ("float32",), "token_scale": (False,), "bias": ("none",)},
)  # fmt: skip
"""Scales of a checkpoint are loaded into parameters of the model's dtype."""


def _dynamic(method: Any, inputs: QuantMatmulInputs, nz: str) -> torch.Tensor:  # noqa: ANN401 - vllm-ascend's
    """Load a weight of a checkpoint into the parameters that a method makes, and apply it to rows of floats."""
    dtype = inputs.output_dtype

    def layer(weight: torch.Tensor, scale: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        inner, columns = weight.shape
        made = {**method.get_weight(inner, columns, dtype), **method.get_perchannel_param(columns, dtype)}
        given = {
            "weight": weight.t(),
            "weight_scale": scale.unsqueeze(1),
            "weight_offset": torch.zeros_like(scale).unsqueeze(1),
        }
        loaded = {name: made[name].to(states.device).copy_(values) for name, values in given.items()}
        return applied(method, loaded, states, inputs.bias, nz, dtype)

    return of_rows(inputs, dtype, layer)


@implementation("quant_matmul", name="AscendW8A8DynamicLinearMethod", supports=_DYNAMIC, options=NZ, on_device=True)
def of_int8_rows(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """AscendW8A8DynamicLinearMethod: npu_dynamic_quant and npu_quant_matmul."""
    return _dynamic(AscendW8A8DynamicLinearMethod(), inputs, options_of(inputs)["weight_nz_mode"])


@implementation(
    "quant_matmul",
    name="AscendW4A4LaosDynamicLinearMethod",
    supports={
        **_ROWS, "bits": (4,), "output": ("bfloat16", "float16"), "token_scale": (True,), "bias": ("none",),
        "tokens": range(1, 9),
    },
    on_device=True,
)  # fmt: skip
def of_int4_rows(inputs: QuantMatmulInputs, target: Target) -> torch.Tensor:
    """AscendW4A4LaosDynamicLinearMethod: int4 of rows by int4, with scales of tokens in calls of their own."""
    return _dynamic(AscendW4A4LaosDynamicLinearMethod(), inputs, "0")
