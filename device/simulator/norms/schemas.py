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

RMS_NORM_BACKWARD = "npu_rms_norm_backward(Tensor dy, Tensor input, Tensor gamma, Tensor rstd) -> (Tensor, Tensor)"
ADD_RMS_NORM_QUANT = (
    "npu_add_rms_norm_quant(Tensor x1, Tensor x2, Tensor gamma, Tensor scales1, Tensor? zero_points1, "
    "Tensor? beta=None, Tensor? scales2=None, Tensor? zero_points2=None, *, int axis=-1, float epsilon=1e-06, "
    "bool div_mode=True, int? dst_type=None) -> (Tensor, Tensor, Tensor)"
)
ADD_RMS_NORM_DYNAMIC_QUANT = (
    "npu_add_rms_norm_dynamic_quant(Tensor x1, Tensor x2, Tensor gamma, *, Tensor? smooth_scale1=None, "
    "Tensor? smooth_scale2=None, Tensor? beta=None, float epsilon=1e-6, bool[2]? output_mask=None, "
    "int? y_dtype=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
RMS_NORM_QUANT = (
    "npu_rms_norm_quant(Tensor x, Tensor gamma, Tensor beta, Tensor scale, Tensor offset, float epsilon=1e-06, *, "
    "int? dst_dtype=None) -> Tensor"
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
    RMS_NORM_BACKWARD,
    GEMMA_RMS_NORM,
    ADD_RMS_NORM,
    ADD_RMS_NORM_V2,
    ADD_RMS_NORM_V2_FUNCTIONAL,
    ADD_RMS_NORM_QUANT,
    ADD_RMS_NORM_DYNAMIC_QUANT,
    RMS_NORM_QUANT,
    KV_RMSNORM_ROPE_CACHE,
    KV_RMSNORM_ROPE_CACHE_V2,
    KV_RMSNORM_ROPE_CACHE_V2_FUNCTIONAL,
)
"""Every schema of the family."""
