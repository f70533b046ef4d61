"""The operators of this family."""

from __future__ import annotations

from device.simulator.library import Operator
from device.simulator.moe import gating, schemas

OPERATORS = (
    Operator(schemas.GATING_TOP_K_SOFTMAX, gating.gating_top_k_softmax, gating.gating_top_k_softmax_meta),
    Operator(schemas.GATING_TOP_K, gating.gating_top_k, gating.gating_top_k_meta),
)
"""Every operator of the family."""
