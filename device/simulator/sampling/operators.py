"""The operators of this family: torch_npu's, and one of sgl-kernel-npu."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.sampling import schemas
from npudiff.device.simulator.sampling.token_bitmask import apply_token_bitmask, apply_token_bitmask_meta
from npudiff.device.simulator.sampling.top_k_top_p import top_k_top_p, top_k_top_p_meta

OPERATORS = (
    Operator(schemas.TOP_K_TOP_P, top_k_top_p, top_k_top_p_meta),
    Operator(schemas.APPLY_BITMASK, apply_token_bitmask, apply_token_bitmask_meta),
)
"""Every operator of the family."""
