"""The operators of this family."""

from __future__ import annotations

from device.simulator.grouped_matmul import grouped_matmul as grouped
from device.simulator.grouped_matmul import schemas
from device.simulator.library import Operator

OPERATORS = (
    Operator(schemas.GROUPED_MATMUL, grouped.grouped_matmul, grouped.grouped_matmul_meta),
    Operator(schemas.GROUPED_MATMUL_LIST, grouped.grouped_matmul_list, grouped.grouped_matmul_list_meta),
)
"""Every operator of the family."""
