"""Schemas of the norm operators, as torch_npu 2.13.0 registers them.

The strings are those in ``libtorch_npu.so``. The wheel's other listing,
``csrc/aten/npu_native_functions_by_codegen.yaml``, calls the first argument of ``npu_rms_norm`` and
``npu_gemma_rms_norm`` ``self``; the library calls it ``input``.
"""

from __future__ import annotations

RMS_NORM = "npu_rms_norm(Tensor input, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)"
GEMMA_RMS_NORM = "npu_gemma_rms_norm(Tensor input, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)"

ADD_RMS_NORM = "npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)"
ADD_RMS_NORM_V2 = "npu_add_rms_norm_v2(Tensor(a!) x1, Tensor(b!) x2, Tensor gamma, float epsilon=1e-06) -> Tensor"
ADD_RMS_NORM_V2_FUNCTIONAL = (
    "npu_add_rms_norm_v2_functional(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> "
    "(Tensor, Tensor, Tensor)"
)

_KV_INPUTS = "Tensor kv, Tensor gamma, Tensor cos, Tensor sin, Tensor index, "
_KV_OPTIONS = (
    "Tensor? k_rope_scale=None, Tensor? c_kv_scale=None, Tensor? k_rope_offset=None, Tensor? c_kv_offset=None, "
    "Tensor? v=None, float epsilon=1e-5, str cache_mode='Norm', bool is_output_kv=False"
)
_CACHE_DTYPES = ", int? k_cache_dtype=None, int? ckv_cache_dtype=None"

KV_RMSNORM_ROPE_CACHE = (
    f"npu_kv_rmsnorm_rope_cache({_KV_INPUTS}Tensor k_cache, Tensor ckv_cache, *, {_KV_OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor)"
)
KV_RMSNORM_ROPE_CACHE_V2 = (
    f"npu_kv_rmsnorm_rope_cache_v2({_KV_INPUTS}Tensor(a!) k_cache, Tensor(b!) ckv_cache, *, "
    f"{_KV_OPTIONS}{_CACHE_DTYPES}) -> (Tensor, Tensor)"
)
KV_RMSNORM_ROPE_CACHE_V2_FUNCTIONAL = (
    f"npu_kv_rmsnorm_rope_cache_v2_functional({_KV_INPUTS}Tensor k_cache, Tensor ckv_cache, *, "
    f"{_KV_OPTIONS}{_CACHE_DTYPES}) -> (Tensor, Tensor, Tensor, Tensor)"
)

SCHEMAS = (
    RMS_NORM,
    GEMMA_RMS_NORM,
    ADD_RMS_NORM,
    ADD_RMS_NORM_V2,
    ADD_RMS_NORM_V2_FUNCTIONAL,
    KV_RMSNORM_ROPE_CACHE,
    KV_RMSNORM_ROPE_CACHE_V2,
    KV_RMSNORM_ROPE_CACHE_V2_FUNCTIONAL,
)
"""Every schema of the family."""
