"""The operators of this family."""

from __future__ import annotations

from functools import partial

from npudiff.device.simulator.grouped_matmul import finalize_routing as finalize
from npudiff.device.simulator.grouped_matmul import schemas
from npudiff.device.simulator.grouped_matmul import swiglu_quant as swiglu
from npudiff.device.simulator.grouped_matmul.grouped_matmul import grouped_matmul, grouped_matmul_meta
from npudiff.device.simulator.grouped_matmul.request import normalise
from npudiff.device.simulator.library import Operator

OPERATORS = (
    Operator(
        schemas.GROUPED_MATMUL, grouped_matmul, grouped_matmul_meta, ("weight",), partial(normalise, is_list=False)
    ),
    Operator(
        schemas.GROUPED_MATMUL_LIST, grouped_matmul, grouped_matmul_meta, ("weight",), partial(normalise, is_list=True)
    ),
    Operator(schemas.SWIGLU_QUANT, swiglu.swiglu_quant, swiglu.swiglu_quant_meta, ("weight",)),
    Operator(schemas.SWIGLU_QUANT_V2, swiglu.swiglu_quant_v2, swiglu.swiglu_quant_v2_meta, ("weight",)),
    Operator(
        schemas.FINALIZE_ROUTING,
        finalize.finalize_routing,
        finalize.finalize_routing_meta,
        ("w",),
        finalize.normalise,
    ),
)
"""Every operator of the family."""
