"""The operators of this family, all of sgl-kernel-npu."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.lora import schemas, sgemmv

OPERATORS = (
    Operator(schemas.SGEMMV_SHRINK, sgemmv.sgemmv_shrink, sgemmv.sgemmv_shrink_meta),
    Operator(schemas.SGEMMV_EXPAND, sgemmv.sgemmv_expand, sgemmv.sgemmv_expand_meta),
)
"""Every operator of the family."""
