"""Adapters: one call path each, with the operators and arguments that a production backend uses.

Every adapter is an implementation of its own, and runs unchanged on every target.
"""

from device.ascend.cache_gather import (
    gather_pa,
    gather_pa_cumulative,
    index_nz_pages,
    index_pages,
)
from device.ascend.cached_attention import (
    converted_pool,
    nd_pool,
    nz_pool,
)
from device.ascend.dynamic_quant import (
    composed_dynamic_quant,
    npu_dynamic_quant,
    npu_dynamic_quant_int4,
)
from device.ascend.format_cast import (
    npu_format_cast,
    npu_format_cast_in_place,
    pad_view_permute,
)
from device.ascend.grouped_matmul import (
    expert_by_expert,
    npu_grouped_matmul,
    npu_grouped_matmul_inner,
    npu_grouped_matmul_listed,
    npu_grouped_matmul_ungrouped,
    npu_grouped_matmul_w4a8,
    npu_grouped_matmul_w8a8,
    npu_grouped_matmul_weights_only,
)
from device.ascend.hybrid_pools import (
    fia_pools,
    torch_native_pools,
)
from device.ascend.kv_rmsnorm_rope_cache import (
    decode_norm,
    decode_pa_bnsd,
    decode_pa_nz,
    native_mla_write,
    prefill_blk_bnsd,
    prefill_blk_nz,
    prefill_pa,
    prefill_v2,
)
from device.ascend.mla_preprocess import (
    native_mla_preprocess,
    npu_mla_prolog_v2,
    npu_mla_prolog_v3,
    npu_mla_prolog_v3_nz,
    rms_norm_cache_path,
)
from device.ascend.mlapo import (
    mlapo_nd,
    mlapo_nz,
)
from device.ascend.moe_experts import (
    expert_by_expert_composed,
    routed_v1,
    routed_v2,
    sum_in_the_product,
    swiglu_in_the_product,
    unpermuted,
)
from device.ascend.moe_finalize import (
    finalize_by_column,
    finalize_by_row,
    finalize_with_none,
    native_finalize,
    token_unpermute,
)
from device.ascend.moe_gating import (
    native_gating,
    npu_moe_gating_top_k,
    npu_moe_gating_top_k_softmax,
    softmax_then_norm,
)
from device.ascend.moe_routing import (
    init_routing_v1,
    init_routing_v2,
    init_routing_v2_cumulative,
    native_routing,
    token_permute,
)
from device.ascend.page_allocation import (
    alloc_decode,
    alloc_extend,
)
from device.ascend.paged_cache import (
    index_put,
    reshape_and_cache,
    scatter_nd_update,
    scatter_nz_rows,
    scatter_pa_norm,
    scatter_pa_nz,
)
from device.ascend.rms_norm import (
    gemma_add_rms_norm,
    native_rms_norm,
    npu_add_rms_norm,
    npu_add_rms_norm_v2,
    npu_gemma_rms_norm,
    npu_rms_norm,
)
from device.ascend.rope_cache import (
    from_positions,
    get_cos_sin_cache,
    get_sin_cos,
    rope_table,
)
from device.ascend.rotary import (
    native_mrope,
    native_rotary,
    npu_apply_rotary_pos_emb,
    npu_interleave_rope,
    npu_mrope,
    npu_rotary_mul,
)
from device.ascend.sliding_attention import (
    fia_decode_mask,
    fia_decode_nz,
    fia_decode_tnd,
    fia_extend_bsnd,
    fia_extend_nz,
    fia_extend_tnd,
    fia_v1_decode_bsh,
    fia_v1_extend_tnd,
    fia_verify_tnd,
    torch_native,
)
from device.ascend.swa_mask import (
    swa_mask_eager,
    swa_mask_graph,
)
from device.ascend.swiglu import (
    by_configuration,
    composed_swiglu,
    npu_clipped_swiglu,
    npu_swiglu,
    swiglu_in_float32,
)

__all__ = [
    "alloc_decode",
    "alloc_extend",
    "by_configuration",
    "composed_dynamic_quant",
    "composed_swiglu",
    "converted_pool",
    "decode_norm",
    "decode_pa_bnsd",
    "decode_pa_nz",
    "expert_by_expert",
    "expert_by_expert_composed",
    "fia_decode_mask",
    "fia_decode_nz",
    "fia_decode_tnd",
    "fia_extend_bsnd",
    "fia_extend_nz",
    "fia_extend_tnd",
    "fia_pools",
    "fia_v1_decode_bsh",
    "fia_v1_extend_tnd",
    "fia_verify_tnd",
    "finalize_by_column",
    "finalize_by_row",
    "finalize_with_none",
    "from_positions",
    "gather_pa",
    "gather_pa_cumulative",
    "gemma_add_rms_norm",
    "get_cos_sin_cache",
    "get_sin_cos",
    "index_nz_pages",
    "index_pages",
    "index_put",
    "init_routing_v1",
    "init_routing_v2",
    "init_routing_v2_cumulative",
    "mlapo_nd",
    "mlapo_nz",
    "native_finalize",
    "native_gating",
    "native_mla_preprocess",
    "native_mla_write",
    "native_mrope",
    "native_rms_norm",
    "native_rotary",
    "native_routing",
    "nd_pool",
    "npu_add_rms_norm",
    "npu_add_rms_norm_v2",
    "npu_apply_rotary_pos_emb",
    "npu_clipped_swiglu",
    "npu_dynamic_quant",
    "npu_dynamic_quant_int4",
    "npu_format_cast",
    "npu_format_cast_in_place",
    "npu_gemma_rms_norm",
    "npu_grouped_matmul",
    "npu_grouped_matmul_inner",
    "npu_grouped_matmul_listed",
    "npu_grouped_matmul_ungrouped",
    "npu_grouped_matmul_w4a8",
    "npu_grouped_matmul_w8a8",
    "npu_grouped_matmul_weights_only",
    "npu_interleave_rope",
    "npu_mla_prolog_v2",
    "npu_mla_prolog_v3",
    "npu_mla_prolog_v3_nz",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_softmax",
    "npu_mrope",
    "npu_rms_norm",
    "npu_rotary_mul",
    "npu_swiglu",
    "nz_pool",
    "pad_view_permute",
    "prefill_blk_bnsd",
    "prefill_blk_nz",
    "prefill_pa",
    "prefill_v2",
    "reshape_and_cache",
    "rms_norm_cache_path",
    "rope_table",
    "routed_v1",
    "routed_v2",
    "scatter_nd_update",
    "scatter_nz_rows",
    "scatter_pa_norm",
    "scatter_pa_nz",
    "softmax_then_norm",
    "sum_in_the_product",
    "swa_mask_eager",
    "swa_mask_graph",
    "swiglu_in_float32",
    "swiglu_in_the_product",
    "token_permute",
    "token_unpermute",
    "torch_native",
    "torch_native_pools",
    "unpermuted",
]
