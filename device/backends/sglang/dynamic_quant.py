"""Quantisation of rows in sglang: ``hardware_backend/npu/moe/quant.py``."""

from __future__ import annotations

import torch
from sglang.srt.hardware_backend.npu.moe.quant import HiddenStatesDynamicQuant

from npudiff import Target, implementation
from npudiff.device.ascend.dynamic_quant import unpacked
from npudiff.reference.dynamic_quant import DynamicQuantInputs

Outputs = dict[str, torch.Tensor]

_DTYPES = {8: torch.int8, 4: torch.quint4x2}


@implementation("dynamic_quant", name="HiddenStatesDynamicQuant", supports={"smooth": ("none",)}, on_device=True)
def dynamic_quant(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """HiddenStatesDynamicQuant to integers of eight and of four bits."""
    rows, scale = HiddenStatesDynamicQuant(_DTYPES[inputs.bits])(inputs.states)
    return {"quantised": rows if inputs.bits == 8 else unpacked(rows), "scale": scale}
