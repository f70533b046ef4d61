"""Schemas of attention over chosen tokens, as torch_npu 2.13.0, sgl-kernel-npu and vllm-ascend register them."""

from __future__ import annotations

_NO_BAND = "int pre_tokens=9223372036854775807, int next_tokens=9223372036854775807"
_INDEXER = (
    "Tensor? actual_seq_lengths_query=None, Tensor? actual_seq_lengths_key=None, Tensor? block_table=None, "
    'str layout_query="BSND", str layout_key="BSND", int sparse_count=2048, int sparse_mode=3, ' + _NO_BAND
)
_LENGTHS = "Tensor? block_table=None, Tensor? actual_seq_lengths_query=None, Tensor? actual_seq_lengths_kv=None, "
_LAYOUTS = f'int sparse_block_size=1, str layout_query="BSND", str layout_kv="BSND", int sparse_mode=3, {_NO_BAND}'

LIGHTNING_INDEXER = (
    f"npu_lightning_indexer(Tensor query, Tensor key, Tensor weights, *, {_INDEXER}, bool return_value=False) -> "
    "(Tensor, Tensor)"
)
QUANT_LIGHTNING_INDEXER = (
    "npu_quant_lightning_indexer(Tensor query, Tensor key, Tensor weights, Tensor query_dequant_scale, "
    f"Tensor key_dequant_scale, int query_quant_mode, int key_quant_mode, *, {_INDEXER}, int? query_dtype=None, "
    "int? key_dtype=None) -> Tensor"
)
SPARSE_FLASH_ATTENTION = (
    "npu_sparse_flash_attention(Tensor query, Tensor key, Tensor? value, Tensor sparse_indices, float scale_value, *, "
    f"{_LENGTHS}Tensor? query_rope=None, Tensor? key_rope=None, {_LAYOUTS}, int attention_mode=0, "
    "bool return_softmax_lse=False, Tensor? sinks=None) -> (Tensor, Tensor, Tensor)"
)
KV_QUANT_SPARSE_FLASH_ATTENTION = (
    "npu_kv_quant_sparse_flash_attention(Tensor query, Tensor key, Tensor value, Tensor sparse_indices, "
    "float scale_value, int key_quant_mode, int value_quant_mode, *, Tensor? key_dequant_scale=None, "
    f"Tensor? value_dequant_scale=None, {_LENGTHS}{_LAYOUTS}, int attention_mode=0, int quant_scale_repo_mode=1, "
    "int tile_size=128, int rope_head_dim=64, int? key_dtype=None, int? value_dtype=None) -> Tensor"
)

_SCORE = (
    "npu_sparse_attention_score(Tensor query, Tensor key, Tensor value, Tensor select_idx, Tensor block_table, *, "
    "Tensor? select_num_idx=None, Tensor? q_dequant_scale=None, Tensor? k_dequant_scale=None, "
    "Tensor? v_dequant_scale=None, Tensor? actual_seq_lengths=None, Tensor? actual_seq_lengths_kv=None, "
    'str q_input_layout="TND", str kv_input_layout="BNSD", int num_key_value_heads=1, float scale_value=1.0, '
    "int block_size=128, int top_k=16, int inner_precise=0) -> Tensor"
)
SPARSE_ATTENTION_SCORE = f"_C_ascend::{_SCORE}"
SPARSE_ATTENTION_SCORE_OF_NPU = _SCORE
"""The same under the name that vllm-ascend's README and tests of the operator use."""

SGL_SPARSE_FLASH_ATTENTION = (
    "sgl_sparse_flash_attention(Tensor query, Tensor key, Tensor value, Tensor sparse_indices, float scale_value, *, "
    f"{_LENGTHS}Tensor? query_rope=None, Tensor? key_rope=None, {_LAYOUTS}, int attention_mode=2, "
    "bool return_softmax_lse=False) -> (Tensor attention_out, Tensor softmax_max, Tensor softmax_sum)"
)

SCHEMAS = (LIGHTNING_INDEXER, QUANT_LIGHTNING_INDEXER, SPARSE_FLASH_ATTENTION, KV_QUANT_SPARSE_FLASH_ATTENTION)
"""Every schema of the family that torch_npu registers."""

OF_SGL_KERNEL_NPU = (SGL_SPARSE_FLASH_ATTENTION,)
"""Every schema of the family that sgl-kernel-npu registers."""

OF_VLLM_ASCEND = (SPARSE_ATTENTION_SCORE, SPARSE_ATTENTION_SCORE_OF_NPU)
"""Every schema of the family that vllm-ascend registers (``csrc/torch_binding.cpp``)."""
