"""Schemas of the activation operators, as torch_npu 2.13.0 registers them.

The strings are those in ``libtorch_npu.so``. The wheel's other listing,
``csrc/aten/npu_native_functions_by_codegen.yaml``, calls the first argument of ``npu_swiglu`` ``self``; the library
calls it ``input``.
"""

from __future__ import annotations

SWIGLU = "npu_swiglu(Tensor input, int dim=-1) -> Tensor"
CLIPPED_SWIGLU = (
    "npu_clipped_swiglu(Tensor x, *, Tensor? group_index=None, int dim=-1, float alpha=1.702, float limit=7.0, "
    "float bias=1.0, bool interleaved=True) -> Tensor"
)
DEQUANT_SWIGLU_QUANT = (
    "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, "
    "Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, "
    "bool activate_left=False, int quant_mode=0, int? dst_type=None, int? round_mode=None, int? activate_dim=None, "
    "int swiglu_mode=0, float clamp_limit=7.0, float glu_alpha=1.702, float glu_bias=1.0) -> (Tensor, Tensor)"
)
SWIGLU_QUANT = (
    "npu_swiglu_quant(Tensor x, *, Tensor? smooth_scales=None, Tensor? offsets=None, Tensor? group_index=None, "
    "bool activate_left=False, int quant_mode=0, int group_list_type=0, ScalarType? dst_type=None) -> (Tensor, Tensor)"
)

SWIGLU_BACKWARD = "npu_swiglu_backward(Tensor grad_output, Tensor input, int dim=-1) -> Tensor"
GEGLU = "npu_geglu(Tensor input, int dim=-1, int approximate=1, bool activate_left=False) -> (Tensor, Tensor)"
FAST_GELU = "npu_fast_gelu(Tensor input) -> Tensor"
FAST_GELU_BY_ITS_OTHER_NAME = "fast_gelu(Tensor input) -> Tensor"
FAST_GELU_BACKWARD = "npu_fast_gelu_backward(Tensor grad, Tensor input) -> Tensor"

SCHEMAS = (
    SWIGLU_BACKWARD,
    GEGLU,
    FAST_GELU,
    FAST_GELU_BY_ITS_OTHER_NAME,
    FAST_GELU_BACKWARD,
    SWIGLU,
    CLIPPED_SWIGLU,
    DEQUANT_SWIGLU_QUANT,
    SWIGLU_QUANT,
)
"""Every schema of the family."""
