"""The mask of sliding-window attention of sglang: ``AscendAttnMaskBuilder.get_swa_mask``."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from sglang.srt.hardware_backend.npu.attention.ascend_backend import AscendAttnMaskBuilder

from npudiff import Target, implementation
from npudiff.device.backends.sglang.world import configured
from npudiff.reference.swa_mask import SwaMaskInputs


@implementation("swa_mask", name="get_swa_mask", supports={"window": range(1, 2**31)}, on_device=True)
def get_swa_mask(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """AscendAttnMaskBuilder.get_swa_mask, told the number of visible keys."""
    configured()
    builder = AscendAttnMaskBuilder(SimpleNamespace(dtype=torch.bfloat16), "npu", True, False)
    mask: torch.Tensor = builder.get_swa_mask(inputs.kv_lengths, inputs.capacity, left_context=inputs.window)
    return mask
