"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.activation import dequant_swiglu_quant as dequant
from npudiff.device.simulator.activation import gelu, schemas
from npudiff.device.simulator.activation.clipped_swiglu import clipped_swiglu, clipped_swiglu_meta
from npudiff.device.simulator.activation.swiglu import swiglu, swiglu_backward, swiglu_backward_meta, swiglu_meta
from npudiff.device.simulator.activation.swiglu_quant import swiglu_quant, swiglu_quant_meta
from npudiff.device.simulator.library import Operator

OPERATORS = (
    Operator(schemas.SWIGLU, swiglu, swiglu_meta),
    Operator(schemas.SWIGLU_BACKWARD, swiglu_backward, swiglu_backward_meta),
    Operator(schemas.GEGLU, gelu.geglu, gelu.geglu_meta),
    Operator(schemas.FAST_GELU, gelu.fast_gelu, gelu.fast_gelu_meta),
    Operator(schemas.FAST_GELU_BY_ITS_OTHER_NAME, gelu.fast_gelu, gelu.fast_gelu_meta),
    Operator(schemas.FAST_GELU_BACKWARD, gelu.fast_gelu_backward, gelu.fast_gelu_backward_meta),
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
