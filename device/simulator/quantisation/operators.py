"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.quantisation import fused_products as fused
from npudiff.device.simulator.quantisation import quant_matmul as matmul
from npudiff.device.simulator.quantisation import quant_scatter as scatter
from npudiff.device.simulator.quantisation import schemas
from npudiff.device.simulator.quantisation import weight_quant_batchmatmul as weight_quant
from npudiff.device.simulator.quantisation.anti_quant import anti_quant, anti_quant_meta
from npudiff.device.simulator.quantisation.dynamic_quant import dynamic_quant, dynamic_quant_meta
from npudiff.device.simulator.quantisation.dynamic_quant_asymmetric import (
    dynamic_quant_asymmetric,
    dynamic_quant_asymmetric_meta,
)
from npudiff.device.simulator.quantisation.group_quant import group_quant, group_quant_meta
from npudiff.device.simulator.quantisation.int4pack import convert_weight_to_int4pack, convert_weight_to_int4pack_meta
from npudiff.device.simulator.quantisation.quant_request import QuantMatmulRequest
from npudiff.device.simulator.quantisation.quantize import quantize, quantize_meta
from npudiff.device.simulator.quantisation.trans_quant_param import trans_quant_param, trans_quant_param_meta

OPERATORS = (
    Operator(schemas.DYNAMIC_QUANT, dynamic_quant, dynamic_quant_meta),
    Operator(schemas.DYNAMIC_QUANT_ASYMMETRIC, dynamic_quant_asymmetric, dynamic_quant_asymmetric_meta),
    Operator(schemas.QUANTIZE, quantize, quantize_meta, ("input",)),
    Operator(
        schemas.CONVERT_WEIGHT_TO_INT4PACK, convert_weight_to_int4pack, convert_weight_to_int4pack_meta, ("weight",)
    ),
    Operator(schemas.TRANS_QUANT_PARAM, trans_quant_param, trans_quant_param_meta),
    Operator(schemas.QUANT_MATMUL, matmul.quant_matmul, matmul.quant_matmul_meta, ("x2",), QuantMatmulRequest),
    Operator(schemas.QUANT_MATMUL_GELU, fused.quant_matmul_gelu, fused.quant_matmul_gelu_meta, ("x2",)),
    Operator(
        schemas.QUANT_MATMUL_REDUCE_SUM, fused.quant_matmul_reduce_sum, fused.quant_matmul_reduce_sum_meta, ("x2",)
    ),
    Operator(
        schemas.WEIGHT_QUANT_BATCHMATMUL,
        weight_quant.weight_quant_batchmatmul,
        weight_quant.weight_quant_batchmatmul_meta,
        ("weight",),
        weight_quant.WeightQuantRequest,
    ),
    Operator(schemas.ANTI_QUANT, anti_quant, anti_quant_meta),
    Operator(schemas.GROUP_QUANT, group_quant, group_quant_meta),
    Operator(schemas.QUANT_SCATTER, scatter.quant_scatter, scatter.quant_scatter_meta),
    Operator(schemas.QUANT_SCATTER_IN_PLACE, scatter.quant_scatter_in_place, scatter.quant_scatter_in_place_meta),
)
"""Every operator of the family."""
