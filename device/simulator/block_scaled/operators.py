"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.block_scaled import dual_level_quant_matmul as dual_level
from npudiff.device.simulator.block_scaled import dynamic_mx_quant as mx
from npudiff.device.simulator.block_scaled import schemas
from npudiff.device.simulator.block_scaled.dtype_cast import dtype_cast, dtype_cast_meta
from npudiff.device.simulator.block_scaled.dynamic_block_quant import dynamic_block_quant, dynamic_block_quant_meta
from npudiff.device.simulator.block_scaled.dynamic_dual_level_mx_quant import (
    dynamic_dual_level_mx_quant,
    dynamic_dual_level_mx_quant_meta,
)
from npudiff.device.simulator.block_scaled.kronecker_quant import kronecker_quant, kronecker_quant_meta
from npudiff.device.simulator.library import Operator

OPERATORS = (
    Operator(schemas.DYNAMIC_MX_QUANT, mx.dynamic_mx_quant, mx.dynamic_mx_quant_meta, request=mx.MxRequest),
    Operator(schemas.DYNAMIC_DUAL_LEVEL_MX_QUANT, dynamic_dual_level_mx_quant, dynamic_dual_level_mx_quant_meta),
    Operator(schemas.DYNAMIC_BLOCK_QUANT, dynamic_block_quant, dynamic_block_quant_meta),
    Operator(schemas.KRONECKER_QUANT, kronecker_quant, kronecker_quant_meta),
    Operator(
        schemas.DUAL_LEVEL_QUANT_MATMUL,
        dual_level.dual_level_quant_matmul,
        dual_level.dual_level_quant_matmul_meta,
        ("x2",),
        dual_level.DualLevelRequest,
    ),
    Operator(schemas.DTYPE_CAST, dtype_cast, dtype_cast_meta),
)
"""Every operator of the family."""
