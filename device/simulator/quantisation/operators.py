"""The operators of this family."""

from __future__ import annotations

from device.simulator.library import Operator
from device.simulator.quantisation import schemas
from device.simulator.quantisation.dynamic_quant import dynamic_quant, dynamic_quant_meta
from device.simulator.quantisation.quantize import quantize, quantize_meta

OPERATORS = (
    Operator(schemas.DYNAMIC_QUANT, dynamic_quant, dynamic_quant_meta),
    Operator(schemas.QUANTIZE, quantize, quantize_meta),
)
"""Every operator of the family."""
