"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.activation import dequant_swiglu_quant as dequant
from npudiff.device.simulator.activation import schemas
from npudiff.device.simulator.activation.clipped_swiglu import clipped_swiglu, clipped_swiglu_meta
from npudiff.device.simulator.activation.swiglu import swiglu, swiglu_meta
from npudiff.device.simulator.activation.swiglu_quant import swiglu_quant, swiglu_quant_meta
from npudiff.device.simulator.library import Operator

OPERATORS = (
    Operator(schemas.SWIGLU, swiglu, swiglu_meta),
    Operator(schemas.CLIPPED_SWIGLU, clipped_swiglu, clipped_swiglu_meta),
    Operator(
        schemas.DEQUANT_SWIGLU_QUANT,
        dequant.dequant_swiglu_quant,
        dequant.dequant_swiglu_quant_meta,
        request=dequant.DequantRequest,
    ),
    Operator(schemas.SWIGLU_QUANT, swiglu_quant, swiglu_quant_meta),
)
"""Every operator of the family."""
