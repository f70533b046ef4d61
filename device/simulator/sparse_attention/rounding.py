"""Casts of vector units with ``CAST_ROUND``."""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.fused_attention.rounding import narrow
from npudiff.device.simulator.rotary.rotation import to_bfloat16_half_away


def half_away(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 to bfloat16 or float16, halves away from zero."""
    return to_bfloat16_half_away(values) if dtype == torch.bfloat16 else narrow(values, dtype)
