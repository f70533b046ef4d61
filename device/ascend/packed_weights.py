"""Weights as operators for integers want them: int4 in words, scales as bits, and what goes with both."""

from __future__ import annotations

import torch

from reference.expert_weights import ExpertWeights

HALF = 8
"""What is taken from the lower half of an int8, so that it is an int4."""


def words(values: torch.Tensor) -> torch.Tensor:
    """Pack int4 ``[..., columns]`` into int32 ``[..., columns / 8]``: two in a byte, the first in the lower half."""
    low, high = values[..., 0::2], values[..., 1::2]
    return ((low & 0xF) | (high << 4)).to(torch.int8).contiguous().view(torch.int32)


def bits_of(scale: torch.Tensor | None) -> torch.Tensor:
    """Return the bits of float32 scales as int64, ``[experts, groups, columns]``; raises ``ValueError`` without any."""
    if scale is None:
        raise ValueError("int4 has scales")
    return scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def assist_matrix(weights: ExpertWeights) -> torch.Tensor:
    """Return ``8 * sum(w * scale)`` of each column, float32 ``[experts, columns]``.

    The operator takes an int8 for ``16 * high + low + 8``, computes with both halves, and adds this for the 8.
    """
    if weights.scale is None:
        raise ValueError("int4 has scales")
    experts, groups, columns = weights.scale.shape
    sums = weights.values.view(experts, groups, -1, columns).sum(dim=2, dtype=torch.int64)
    return HALF * (sums * weights.scale).sum(dim=1)
