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

MM_ALL_REDUCE_BASE = (
    "npu_mm_all_reduce_base(Tensor x1, Tensor x2, str hcom, *, str reduce_op='sum', Tensor? bias=None, "
    "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? x3=None, Tensor? dequant_scale=None, "
    "Tensor? pertoken_scale=None, Tensor? comm_quant_scale_1=None, Tensor? comm_quant_scale_2=None, "
    "int antiquant_group_size=0, int comm_turn=0, int[]? group_sizes=None, int? y_dtype=None, int? x1_dtype=None, "
    "int? x2_dtype=None, int? dequant_scale_dtype=None, int? pertoken_scale_dtype=None, int comm_quant_mode=0, "
    "str? comm_mode=None) -> Tensor"
)

MM_REDUCE_SCATTER_BASE = (
    "npu_mm_reduce_scatter_base(Tensor input, Tensor x2, str hcom, int world_size, *, str reduce_op='sum', "
    "Tensor? bias=None, Tensor? x1_scale=None, Tensor? x2_scale=None, int comm_turn=0, "
    "ScalarType? output_dtype=None, str? comm_mode=None) -> Tensor"
)

ALL_GATHER_BASE_MM = (
    "npu_all_gather_base_mm(Tensor input, Tensor x2, str hcom, int world_size, *, Tensor? bias=None, "
    "Tensor? x1_scale=None, Tensor? x2_scale=None, int gather_index=0, bool gather_output=True, int comm_turn=0, "
    "ScalarType? output_dtype=None, str? comm_mode=None) -> (Tensor, Tensor)"
)

MATMUL_ADD_FP32 = "atb::_npu_matmul_add_fp32(Tensor x, Tensor weight, Tensor(a!) C) -> ()"

BATCH_MATMUL_TRANSPOSE = (
    "batch_matmul_transpose(Tensor tensor_a, Tensor tensor_b, Tensor(a!) tensor_c, str? format_mode=None, "
    "str? quant_mode=None) -> ()"
)

SCHEMAS = (
    TRANSPOSE_BATCHMATMUL,
    TRANSPOSE_QUANT_BATCHMATMUL,
    MATMUL_ADD_FP32,
    MM_ALL_REDUCE_BASE,
    MM_REDUCE_SCATTER_BASE,
    ALL_GATHER_BASE_MM,
)
"""Every schema of the family that torch_npu registers."""

OF_SGL_KERNEL_NPU = (BATCH_MATMUL_TRANSPOSE,)
"""Every schema of the family that sgl-kernel-npu registers."""
