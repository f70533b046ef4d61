"""Schemas of products with transpositions and additions, as torch_npu 2.13.0 and sgl-kernel-npu register them."""

from __future__ import annotations

TRANSPOSE_BATCHMATMUL = (
    "npu_transpose_batchmatmul(Tensor input, Tensor weight, *, Tensor? bias=None, Tensor? scale=None, "
    "int[]? perm_x1=None, int[]? perm_x2=None, int[]? perm_y=None, int? batch_split_factor=1) -> Tensor"
)

TRANSPOSE_QUANT_BATCHMATMUL = (
    "npu_transpose_quant_batchmatmul(Tensor x1, Tensor x2, int dtype, *, Tensor? bias=None, Tensor? x1_scale=None, "
    "Tensor? x2_scale=None, int[]? group_sizes=None, int[]? perm_x1=None, int[]? perm_x2=None, int[]? perm_y=None, "
    "int? batch_split_factor=1, int? x1_dtype=None, int? x2_dtype=None) -> Tensor"
)

MATMUL_ADD_FP32 = "atb::_npu_matmul_add_fp32(Tensor x, Tensor weight, Tensor(a!) C) -> ()"

BATCH_MATMUL_TRANSPOSE = (
    "batch_matmul_transpose(Tensor tensor_a, Tensor tensor_b, Tensor(a!) tensor_c, str? format_mode=None, "
    "str? quant_mode=None) -> ()"
)

SCHEMAS = (TRANSPOSE_BATCHMATMUL, TRANSPOSE_QUANT_BATCHMATMUL, MATMUL_ADD_FP32)
"""Every schema of the family that torch_npu registers."""

OF_SGL_KERNEL_NPU = (BATCH_MATMUL_TRANSPOSE,)
"""Every schema of the family that sgl-kernel-npu registers."""
