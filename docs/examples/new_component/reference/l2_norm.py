"""L2 normalisation of rows, as linear attention normalises queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import (
    FLOAT32_ROUNDOFF,
    Expected,
    accumulation_error,
    underflow_step,
    unit_roundoff,
)
from npudiff.reference.views import moved_inputs


@dataclass(frozen=True)
class L2NormInputs:
    """Rows to normalise."""

    x: torch.Tensor
    """``[rows, width]``, bfloat16 or float16."""
    epsilon: float
    """Added to the sum of squares."""

    def to(self, device: str | torch.device) -> L2NormInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def l2_norm(inputs: L2NormInputs) -> dict[str, Expected]:
    """Return ``y = x / sqrt(sum(x ** 2) + epsilon)`` over the last axis, of the shape and dtype of ``x``.

    A correct device sums in float32, where root and reciprocal are off by units in the last place, and rounds once.
    """
    x, dtype = inputs.x.to(torch.float64), inputs.x.dtype
    value = x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + inputs.epsilon)
    relative = unit_roundoff(dtype) + 0.5 * accumulation_error(x.shape[-1]) + 12 * FLOAT32_ROUNDOFF
    return {"y": Expected(value, value.abs() * relative + underflow_step(dtype), dtype)}
