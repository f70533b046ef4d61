"""What no source settles of products with transpositions.

GOLDEN is the expected value of CANN's own tests (ops-nn), TEST that of op-plugin's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MatmulChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_transpose_batchmatmul with scale, to int8: GOLDEN rounds halves away from zero, TEST cuts (and allows 1 %).
    # npu_quant_matmul, by the same unit, rounds halves to even.
    transpose_batchmatmul_int8: Literal["half_away_from_zero", "half_to_even", "cut"] = "half_away_from_zero"
