"""Schemas of filters of logits: as torch_npu 2.13.0 registers them, and as sgl-kernel-npu does."""

from __future__ import annotations

TOP_K_TOP_P = "npu_top_k_top_p(Tensor logits, Tensor? p=None, Tensor? k=None) -> Tensor"

APPLY_BITMASK = "apply_token_bitmask(Tensor logits, Tensor bitmask, Tensor? indices=None) -> Tensor"

SCHEMAS = (TOP_K_TOP_P,)
"""Every schema of the family that torch_npu registers."""

OF_SGL_KERNEL_NPU = (APPLY_BITMASK,)
"""Every schema of the family that sgl-kernel-npu registers."""
