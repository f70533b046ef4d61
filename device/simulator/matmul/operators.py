"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.matmul import schemas
from npudiff.device.simulator.matmul import transpose_batchmatmul as transpose

OPERATORS = (
    Operator(
        schemas.TRANSPOSE_BATCHMATMUL,
        transpose.transpose_batchmatmul,
        transpose.transpose_batchmatmul_meta,
        ("weight",),
        transpose.TransposeRequest,
    ),
)
"""Every operator of the family."""
