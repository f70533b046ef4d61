"""Schemas of the routing operators of mixtures of experts, as torch_npu 2.13.0 registers them."""

from __future__ import annotations

GATING_TOP_K_SOFTMAX = (
    "npu_moe_gating_top_k_softmax(Tensor x, Tensor? finished=None, int k=1) -> (Tensor, Tensor, Tensor)"
)
GATING_TOP_K = (
    "npu_moe_gating_top_k(Tensor x, int k, *, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, "
    "int k_group=1, int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, bool out_flag=False, "
    "float routed_scaling_factor=1.0, float eps=1e-20) -> (Tensor, Tensor, Tensor)"
)

SCHEMAS = (GATING_TOP_K_SOFTMAX, GATING_TOP_K)
"""Every schema of the family."""
