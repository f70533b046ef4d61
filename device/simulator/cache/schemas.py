"""Schemas of the cache operators, as torch_npu 2.13.0 registers them.

Those of the ``npu`` namespace are strings in ``libtorch_npu.so``. Those of ``atb`` are registered by
``libop_plugin_atb.so``, which holds them only in the pieces of 16 bytes that its compiler made; op-plugin's
sources (``op_plugin/ops/atb/ReshapeAndCachAtb.cpp``) have them whole.
"""

from __future__ import annotations

_SCATTER_PA_OPTIONS = (
    "Tensor slot_mapping, *, Tensor? compress_lens=None, Tensor? compress_seq_offsets=None, "
    "Tensor? seq_lens=None, str? cache_mode='PA_NZ'"
)
_GATHER_PA_OPTIONS = "*, Tensor? seq_offset=None, bool is_seq_lens_cumsum=False"
_CAST_OPTIONS = "*, int? customize_dtype=None, int? input_dtype=None"

RESHAPE_AND_CACHE = (
    "atb::_npu_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_indices) -> ()"
)
RESHAPE_AND_CACHE_SISO = "atb::_npu_reshape_and_cache_siso(Tensor key, Tensor(a!) key_cache, Tensor slot_indices) -> ()"

SCATTER_PA = (
    "npu_scatter_pa_kv_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    f"{_SCATTER_PA_OPTIONS}) -> ()"
)
SCATTER_PA_FUNCTIONAL = (
    "npu_scatter_pa_kv_cache_functional(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, "
    f"{_SCATTER_PA_OPTIONS}) -> (Tensor, Tensor)"
)

SCATTER_ND = "npu_scatter_nd_update(Tensor input, Tensor indices, Tensor updates) -> Tensor"
SCATTER_ND_IN_PLACE = "npu_scatter_nd_update_(Tensor(a!) input, Tensor indices, Tensor updates) -> Tensor(a!)"

SCATTER_UPDATE = "scatter_update(Tensor input, Tensor indices, Tensor updates, int axis) -> Tensor"
SCATTER_UPDATE_IN_PLACE = "scatter_update_(Tensor(a!) input, Tensor indices, Tensor updates, int axis) -> Tensor(a!)"

GATHER_PA = (
    "npu_gather_pa_kv_cache(Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor seq_lens, "
    f"Tensor(a!) key, Tensor(b!) value, {_GATHER_PA_OPTIONS}) -> ()"
)
GATHER_PA_FUNCTIONAL = (
    "npu_gather_pa_kv_cache_functional(Tensor key_cache, Tensor value_cache, Tensor block_tables, "
    f"Tensor seq_lens, Tensor key, Tensor value, {_GATHER_PA_OPTIONS}) -> (Tensor, Tensor)"
)

FORMAT_CAST = f"npu_format_cast(Tensor input, int acl_format, {_CAST_OPTIONS}) -> Tensor"
FORMAT_CAST_TENSOR = f"npu_format_cast.Tensor(Tensor input, Tensor dst, {_CAST_OPTIONS}) -> Tensor"
FORMAT_CAST_IN_PLACE = f"npu_format_cast_.acl_format(Tensor(a!) input, int acl_format, {_CAST_OPTIONS}) -> Tensor(a!)"
FORMAT_CAST_IN_PLACE_TENSOR = f"npu_format_cast_(Tensor(a!) input, Tensor src, {_CAST_OPTIONS}) -> Tensor(a!)"
GET_FORMAT = "get_npu_format(Tensor input) -> int"

PREFETCH = "npu_prefetch(Tensor input, Tensor? dependency, int max_size, int offset=0) -> ()"

TRANSFER_KV = (
    "transfer_kv_dim_exchange(Tensor device_k, Tensor host_k, Tensor device_v, Tensor host_v, Tensor device_indices, "
    "Tensor host_indices, int page_size, int direct, int flags) -> ()"
)
STATE_TO_DEVICE = (
    "transfer_state_per_layer_direct_pf_lf(Tensor src, Tensor dst, Tensor src_indices, Tensor dst_indices, "
    "int layer_id, int flags) -> ()"
)
STATES_TO_HOST = (
    "transfer_state_all_layer_direct_lf_pf(Tensor[] device_states, Tensor[] host_states, Tensor device_indices, "
    "Tensor host_indices, int flags) -> ()"
)

SCHEMAS = (
    PREFETCH,
    RESHAPE_AND_CACHE,
    RESHAPE_AND_CACHE_SISO,
    SCATTER_PA,
    SCATTER_PA_FUNCTIONAL,
    SCATTER_ND,
    SCATTER_ND_IN_PLACE,
    SCATTER_UPDATE,
    SCATTER_UPDATE_IN_PLACE,
    GATHER_PA,
    GATHER_PA_FUNCTIONAL,
    FORMAT_CAST,
    FORMAT_CAST_TENSOR,
    FORMAT_CAST_IN_PLACE,
    FORMAT_CAST_IN_PLACE_TENSOR,
    GET_FORMAT,
)
"""Schemas of torch_npu."""

OF_SGL_KERNEL_NPU = (TRANSFER_KV, STATE_TO_DEVICE, STATES_TO_HOST)
"""Schemas of sgl-kernel-npu (``csrc/pytorch_extensions.cpp``)."""
