"""Linear layers of floats by int8 of vllm-ascend: ``quantization/methods/w8a16.py``."""

from __future__ import annotations

import torch
from vllm_ascend.quantization.methods.w8a16 import AscendW8A16LinearMethod

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.linear_world import NZ, applied
from npudiff.device.backends.vllm_ascend.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs

_CHANNELS: Box = {"bits": (8,), "scale_per": ("columns",), "offset": ("none", "whole", "fraction"), "group_size": (0,)}


@implementation("weight_quant_matmul", name="AscendW8A16LinearMethod", supports=_CHANNELS, options=NZ, on_device=True)
def of_int8(inputs: WeightQuantMatmulInputs, target: Target) -> torch.Tensor:
    """AscendW8A16LinearMethod; a symmetric checkpoint has offsets of 0."""
    offset = torch.zeros_like(inputs.scale) if inputs.offset is None else inputs.offset
    tensors = {
        "weight": inputs.weight.t(),
        "weight_scale": inputs.scale.flatten().unsqueeze(1),
        "weight_offset": offset.flatten().unsqueeze(1),
    }
    nz = options_of(inputs)["weight_nz_mode"]
    return applied(AscendW8A16LinearMethod(), tensors, inputs.x, inputs.bias, nz, inputs.x.dtype)
