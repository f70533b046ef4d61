"""Linear layers of int8 by int8 of vllm-ascend: ``quantization/methods/w8a8_static.py``."""

from __future__ import annotations

import torch
from vllm_ascend.quantization.methods.w8a8_static import AscendW8A8LinearMethod

from npudiff import Target, implementation
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
