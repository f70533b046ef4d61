"""The operators of this family: torch_npu's, and one of sgl-kernel-npu."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.matmul import over_ranks, schemas
from npudiff.device.simulator.matmul import transpose_batchmatmul as transpose
from npudiff.device.simulator.matmul import transpose_quant_batchmatmul as quant
from npudiff.device.simulator.matmul.add_fp32 import matmul_add_fp32, matmul_add_fp32_meta
from npudiff.device.simulator.matmul.batch_matmul_transpose import batch_matmul_transpose, batch_matmul_transpose_meta

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
    Operator(schemas.BATCH_MATMUL_TRANSPOSE, batch_matmul_transpose, batch_matmul_transpose_meta),
    Operator(schemas.MATMUL_ADD_FP32, matmul_add_fp32, matmul_add_fp32_meta),
    Operator(
        schemas.MM_ALL_REDUCE_BASE,
        over_ranks.mm_all_reduce,
        over_ranks.mm_all_reduce_meta,
        request=over_ranks.AllReduceRequest,
    ),
    Operator(schemas.MM_REDUCE_SCATTER_BASE, over_ranks.mm_reduce_scatter, over_ranks.mm_reduce_scatter_meta),
    Operator(schemas.ALL_GATHER_BASE_MM, over_ranks.all_gather_mm, over_ranks.all_gather_mm_meta),
)
"""Every operator of the family."""
