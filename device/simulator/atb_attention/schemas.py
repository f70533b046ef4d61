"""Schemas of ATB's attention operators, as ``libop_plugin_atb.so`` of torch_npu 2.13.0 registers them."""

from __future__ import annotations

_DECODE = (
    "Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, int num_heads, float scale_value, "
    "Tensor block_table, Tensor context_lens, Tensor(a!) out"
)
_PACKED = "float scale_value, int num_heads, int num_kv_heads"
_OF_CACHES = "int num_kv_heads, int num_heads, float scale_value, Tensor(a!) out"

PAGED_ATTENTION = f"atb::_npu_paged_attention({_DECODE}, *, Tensor? workspace=None) -> ()"
PAGED_ATTENTION_WORKSPACE = f"atb::_npu_paged_attention_get_workspace({_DECODE}) -> Tensor"
PAGED_ATTENTION_MLA = (
    "atb::_npu_paged_attention_mla(Tensor query, Tensor key_cache, int num_kv_heads, int num_heads, "
    "float scale_value, Tensor block_table, Tensor context_lens, int mla_vheadsize, Tensor(a!) out) -> ()"
)
PAGED_ATTENTION_SPLITFUSE = (
    "atb::_npu_paged_attention_splitfuse(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, "
    f"Tensor context_lens, Tensor mask, Tensor seq_len, {_OF_CACHES}) -> ()"
)
FLASH_ATTENTION_QLENS = (
    "atb::_npu_flash_attention_qlens(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, "
    f"Tensor mask, Tensor seq_len, Tensor context_lens, {_OF_CACHES}) -> ()"
)
FLASH_ATTENTION = (
    "atb::_npu_flash_attention(Tensor query, Tensor key, Tensor value, Tensor mask, Tensor seq_len, "
    f"{_PACKED}, Tensor(a!) out) -> ()"
)
FLASH_ATTENTION_V3 = (
    "atb::_npu_flash_attention_v3(Tensor query, Tensor key, Tensor value, Tensor mask, Tensor seq_len, "
    f"{_PACKED}, *, int? mask_type=3, Tensor(a!) out) -> ()"
)
FLASH_ATTENTION_UNPAD = (
    "atb::_npu_flash_attention_unpad(Tensor query, Tensor key, Tensor value, Tensor seq_len, "
    f"{_PACKED}, Tensor(a!) out) -> ()"
)
FLASH_ATTENTION_UNPAD_V2 = (
    "atb::_npu_flash_attention_unpad_v2(Tensor query, Tensor key, Tensor value, Tensor seq_len, "
    f"{_PACKED}, *, int? kernel_type=0, Tensor(a!) out) -> ()"
)

SCHEMAS = (
    PAGED_ATTENTION,
    PAGED_ATTENTION_WORKSPACE,
    PAGED_ATTENTION_MLA,
    PAGED_ATTENTION_SPLITFUSE,
    FLASH_ATTENTION_QLENS,
    FLASH_ATTENTION,
    FLASH_ATTENTION_V3,
    FLASH_ATTENTION_UNPAD,
    FLASH_ATTENTION_UNPAD_V2,
)
"""Every schema of the family."""
