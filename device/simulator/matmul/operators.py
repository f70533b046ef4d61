"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.matmul import schemas
from npudiff.device.simulator.matmul import transpose_batchmatmul as transpose
from npudiff.device.simulator.matmul import transpose_quant_batchmatmul as quant
from npudiff.device.simulator.matmul.add_fp32 import matmul_add_fp32, matmul_add_fp32_meta

OPERATORS = (
    Operator(
        schemas.TRANSPOSE_BATCHMATMUL,
        transpose.transpose_batchmatmul,
        transpose.transpose_batchmatmul_meta,
        ("weight",),
        transpose.TransposeRequest,
    ),
    Operator(
        schemas.TRANSPOSE_QUANT_BATCHMATMUL,
        quant.transpose_quant_batchmatmul,
        quant.transpose_quant_batchmatmul_meta,
        ("x2",),
        quant.QuantRequest,
    ),
    Operator(schemas.MATMUL_ADD_FP32, matmul_add_fp32, matmul_add_fp32_meta),
)
"""Every operator of the family."""
