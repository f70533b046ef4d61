"""Schemas of the rotary operators, as torch_npu 2.13.0 registers them.

The strings are those in ``libtorch_npu.so``. The wheel's other listing,
``csrc/aten/npu_native_functions_by_codegen.yaml``, calls the first argument of ``npu_rotary_mul`` ``self``;
the library calls it ``input``.
"""

from __future__ import annotations

ROTARY_MUL = "npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode='half', Tensor? rotate=None) -> Tensor"
ROTARY_MUL_BACKWARD = (
    "npu_rotary_mul_backward(Tensor grad, Tensor input, Tensor r1, Tensor r2, str rotary_mode='half') -> "
    "(Tensor, Tensor, Tensor)"
)
ROTARY_EMBEDDING = (
    "atb::_npu_rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!) key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox_style) -> ()"
)
INTERLEAVE_ROPE = "npu_interleave_rope(Tensor x, Tensor cos, Tensor sin) -> Tensor"
MROPE = (
    "npu_mrope(Tensor positions, Tensor query, Tensor key, Tensor cos_sin_cache, int head_size, *, "
    "int[]? mrope_section=None, str? rotary_mode='half', str? cache_mode='default') -> (Tensor, Tensor)"
)
APPLY_ROTARY_POS_EMB = (
    "npu_apply_rotary_pos_emb(Tensor query, Tensor key, Tensor cos, Tensor sin, str layout='BSND', "
    "str rotary_mode='half') -> (Tensor, Tensor)"
)

SCHEMAS = (ROTARY_MUL, ROTARY_MUL_BACKWARD, INTERLEAVE_ROPE, MROPE, APPLY_ROTARY_POS_EMB, ROTARY_EMBEDDING)
"""Every schema of the family."""
