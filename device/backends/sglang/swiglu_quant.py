"""The activation between the products of quantised experts in sglang: ``hardware_backend/npu/moe/activation.py``."""

from __future__ import annotations

import torch
from sglang.srt.hardware_backend.npu.moe.activation import NPUSwigluQuant

from npudiff import Target, implementation
from npudiff.reference.swiglu_quant import SwigluQuantInputs

Outputs = dict[str, torch.Tensor]


@implementation(
    "swiglu_quant",
    name="NPUSwigluQuant",
    supports={
        "sums": ("none",), "bias": (False,), "smooth": (False,), "groups": (None,), "activation": ("silu",),
        "gates": ("left",), "rounding": ("once",),
    },
    on_device=True,
)  # fmt: skip
def swiglu_quant(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """NPUSwigluQuant, which knows no limit: ``moe_experts`` asks for one."""
    rows, scale = NPUSwigluQuant()._apply_activation(inputs.states)
    return {"quantised": rows, "scale": scale}
