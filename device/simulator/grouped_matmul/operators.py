"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.grouped_matmul import finalize_routing as finalize
from npudiff.device.simulator.grouped_matmul import grouped_matmul as grouped
from npudiff.device.simulator.grouped_matmul import schemas
from npudiff.device.simulator.grouped_matmul import swiglu_quant as swiglu
from npudiff.device.simulator.library import Operator

OPERATORS = (
    Operator(schemas.GROUPED_MATMUL, grouped.grouped_matmul, grouped.grouped_matmul_meta, ("weight",)),
    Operator(schemas.GROUPED_MATMUL_LIST, grouped.grouped_matmul_list, grouped.grouped_matmul_list_meta, ("weight",)),
    Operator(schemas.SWIGLU_QUANT, swiglu.swiglu_quant, swiglu.swiglu_quant_meta, ("weight",)),
    Operator(schemas.SWIGLU_QUANT_V2, swiglu.swiglu_quant_v2, swiglu.swiglu_quant_v2_meta, ("weight",)),
    Operator(schemas.FINALIZE_ROUTING, finalize.finalize_routing, finalize.finalize_routing_meta, ("w",)),
)
"""Every operator of the family."""
