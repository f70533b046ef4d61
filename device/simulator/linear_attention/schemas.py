"""Schemas of linear attention.

``SCHEMAS`` are torch_npu 2.13.0's. ``OF_SGL_KERNEL_NPU`` are not in torch_npu: sgl-kernel-npu registers them, in the
``npu`` namespace too (``csrc/pytorch_extensions.cpp``); they are those of the version that sglang 0.5.23 calls. Before
it ``causal_conv1d`` did not say that it writes.
"""

from __future__ import annotations

_RULE = "Tensor query, Tensor key, Tensor value"
_RECURRENT = (
    "*, Tensor? beta=None, float? scale=None, Tensor? actual_seq_lengths=None, Tensor? ssm_state_indices=None, "
    "Tensor? num_accepted_tokens=None, Tensor? g=None, Tensor? gk=None"
)

CHUNK_GATED_DELTA_RULE = (
    f"npu_chunk_gated_delta_rule({_RULE}, *, Tensor? beta=None, Tensor? initial_state=None, "
    "Tensor? actual_seq_lengths=None, float? scale=None, Tensor? g=None) -> (Tensor, Tensor)"
)
RECURRENT_GATED_DELTA_RULE = f"npu_recurrent_gated_delta_rule({_RULE}, Tensor(a!) state, {_RECURRENT}) -> Tensor"
RECURRENT_GATED_DELTA_RULE_FUNCTIONAL = (
    f"npu_recurrent_gated_delta_rule_functional({_RULE}, Tensor state, {_RECURRENT}) -> (Tensor, Tensor)"
)

CAUSAL_CONV1D = (
    "causal_conv1d(Tensor x, Tensor weight, Tensor(a!) conv_states, Tensor? bias=None, Tensor? query_start_loc=None, "
    "Tensor? cache_indices=None, Tensor? has_initial_state=None, Tensor? num_accepted_tokens=None, "
    "int activation_mode=0, int pad_slot_id=-1, int run_mode=0) -> Tensor"
)
SGL_RECURRENT_GATED_DELTA_RULE = (
    "recurrent_gated_delta_rule(Tensor mix_qkv, Tensor(a!) recurrent_state, Tensor beta, float scale, "
    "Tensor actual_seq_lengths, Tensor ssm_state_indices, int nk, int nv, Tensor(b!)? intermediate_state=None, "
    "Tensor? cache_indices=None, Tensor? num_accepted_tokens=None, Tensor? g=None, Tensor? gk=None) -> Tensor"
)

SGL_CHUNK_GATED_DELTA_RULE = (
    f"chunk_gated_delta_rule({_RULE}, *, Tensor? beta=None, Tensor? initial_state=None, "
    "Tensor? actual_seq_lengths=None, float? scale=None, Tensor? g=None, Tensor(c!)? chunk_state=None) -> "
    "(Tensor, Tensor)"
)

SCHEMAS = (CHUNK_GATED_DELTA_RULE, RECURRENT_GATED_DELTA_RULE, RECURRENT_GATED_DELTA_RULE_FUNCTIONAL)
"""Every schema of the family that torch_npu registers."""

OF_SGL_KERNEL_NPU = (CAUSAL_CONV1D, SGL_RECURRENT_GATED_DELTA_RULE, SGL_CHUNK_GATED_DELTA_RULE)
"""Every schema of the family that sgl-kernel-npu registers."""
