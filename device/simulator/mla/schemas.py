"""Schemas of the operators before multi-head latent attention.

``SCHEMAS`` are strings in ``libtorch_npu.so`` of torch_npu 2.13.0. ``OF_SGL_KERNEL_NPU`` are not in torch_npu:
sgl-kernel-npu registers them, in the ``npu`` namespace too (``csrc/pytorch_extensions.cpp``), and no wheel of
torch_npu can confirm them.
"""

from __future__ import annotations

_WEIGHTS = (
    "Tensor token_x, Tensor weight_dq, Tensor weight_uq_qr, Tensor weight_uk, Tensor weight_dkv_kr, "
    "Tensor rmsnorm_gamma_cq, Tensor rmsnorm_gamma_ckv, Tensor rope_sin, Tensor rope_cos, "
)
_SCALES = (
    "Tensor? dequant_scale_x=None, Tensor? dequant_scale_w_dq=None, Tensor? dequant_scale_w_uq_qr=None, "
    "Tensor? dequant_scale_w_dkv_kr=None, Tensor? quant_scale_ckv=None, Tensor? quant_scale_ckr=None, "
    "Tensor? smooth_scales_cq=None, "
)
_EPSILONS = 'float rmsnorm_epsilon_cq=1e-05, float rmsnorm_epsilon_ckv=1e-05, str cache_mode="PA_BSND"'
_MODES = (
    "bool query_norm_flag=False, int weight_quant_mode=0, int kv_cache_quant_mode=0, int query_quant_mode=0, "
    "int ckvkr_repo_mode=0, int quant_scale_repo_mode=0, int tile_size=128, float qc_qr_scale=1.0, "
    "float kc_scale=1.0, int? token_x_dtype=None, int? weight_dq_dtype=None, int? weight_uq_qr_dtype=None, "
    "int? weight_dkv_kr_dtype=None, int? kv_cache_dtype=None"
)
_V1_ARGUMENTS = f"{_WEIGHTS}Tensor cache_index, Tensor kv_cache, Tensor kr_cache, *, {_SCALES}{_EPSILONS}"
_V3_OPTIONS = (
    f"*, Tensor? cache_index=None, {_SCALES}Tensor? actual_seq_len=None, Tensor? k_nope_clip_alpha=None, "
    f"{_EPSILONS}, {_MODES}"
)

MLA_PROLOG = f"npu_mla_prolog({_V1_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
MLA_PROLOG_V2 = f"npu_mla_prolog_v2({_V1_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
MLA_PROLOG_V3 = (
    f"npu_mla_prolog_v3({_WEIGHTS}Tensor(a!) kv_cache, Tensor(b!) kr_cache, {_V3_OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)"
)
MLA_PROLOG_V3_FUNCTIONAL = (
    f"npu_mla_prolog_v3_functional({_WEIGHTS}Tensor kv_cache, Tensor kr_cache, {_V3_OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

MLA_PREPROCESS = (
    "mla_preprocess(Tensor hiddenState, Tensor gamma0, Tensor beta0, Tensor wdqkv, Tensor descale0, Tensor gamma1, "
    "Tensor beta1, Tensor wuq, Tensor descale1, Tensor gamma2, Tensor cos, Tensor sin, Tensor wuk, Tensor kv_cache, "
    "Tensor kv_cache_rope, Tensor slotmapping, Tensor quant_scale0, Tensor quant_offset0, Tensor bias0, "
    "Tensor quant_scale1, Tensor quant_offset1, Tensor bias1, *, Tensor? ctkv_scale=None, Tensor? q_nope_scale=None, "
    "str? cache_mode=None, str? quant_mode=None, Tensor(a!) q_out0, Tensor(b!) kv_cache_out0, Tensor(c!) q_out1, "
    "Tensor(d!) kv_cache_out1) -> (Tensor(a!), Tensor(b!), Tensor(c!), Tensor(d!))"
)

SCHEMAS = (MLA_PROLOG, MLA_PROLOG_V2, MLA_PROLOG_V3, MLA_PROLOG_V3_FUNCTIONAL)
"""Every schema of the family that torch_npu registers."""

OF_SGL_KERNEL_NPU = (MLA_PREPROCESS,)
"""Every schema of the family that sgl-kernel-npu registers."""
