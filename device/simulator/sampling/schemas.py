"""Schemas of filters of logits, as torch_npu 2.13.0 registers them."""

from __future__ import annotations

TOP_K_TOP_P = "npu_top_k_top_p(Tensor logits, Tensor? p=None, Tensor? k=None) -> Tensor"

SCHEMAS = (TOP_K_TOP_P,)
"""Every schema of the family."""
