"""Schemas of operators with a scale per block, as torch_npu 2.13.0 registers them."""

from __future__ import annotations

DYNAMIC_MX_QUANT = (
    'npu_dynamic_mx_quant(Tensor input, *, int axis=-1, str round_mode="rint", int dst_type=296, int block_size=32, '
    "int? scale_alg=0, float dst_type_max=0.0, float max_low_bound=0.0) -> (Tensor, Tensor)"
)
DYNAMIC_DUAL_LEVEL_MX_QUANT = (
    'npu_dynamic_dual_level_mx_quant(Tensor input, *, Tensor? smooth_scale=None, str round_mode="rint") -> '
    "(Tensor, Tensor, Tensor)"
)
DYNAMIC_BLOCK_QUANT = (
    'npu_dynamic_block_quant(Tensor x, *, float min_scale=0.0, str round_mode="rint", int dst_type=1, '
    "int row_block_size=1, int col_block_size=128, float dst_type_max=0.0) -> (Tensor y, Tensor scale)"
)

KRONECKER_QUANT = (
    "npu_kronecker_quant(Tensor x, Tensor kronecker_p1, Tensor kronecker_p2, float? clip_ratio=None, "
    "int? dst_dtype=None, float? dst_type_max=None) -> (Tensor out, Tensor quant_scale)"
)

DUAL_LEVEL_QUANT_MATMUL = (
    "npu_dual_level_quant_matmul(Tensor x1, Tensor x2, Tensor x1_level0_scale, Tensor x2_level0_scale, "
    "Tensor x1_level1_scale, Tensor x2_level1_scale, *, Tensor? bias=None, int output_dtype=15) -> Tensor"
)
DTYPE_CAST = "npu_dtype_cast(Tensor input, int dtype, int? input_dtype=None) -> Tensor"

SCHEMAS = (
    DYNAMIC_MX_QUANT,
    DYNAMIC_DUAL_LEVEL_MX_QUANT,
    DYNAMIC_BLOCK_QUANT,
    KRONECKER_QUANT,
    DUAL_LEVEL_QUANT_MATMUL,
    DTYPE_CAST,
)
"""Every schema of the family."""
