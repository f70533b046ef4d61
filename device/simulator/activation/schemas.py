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

SCHEMAS = (SWIGLU, CLIPPED_SWIGLU)
"""Every schema of the family."""
