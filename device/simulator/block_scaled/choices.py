"""What no source settles of operators with a scale per block. KERNEL is CANN's source (ops-nn) for Ascend 950."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BlockScaledChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # The nibble of a NaN: float4 has none, and no source says what a cast makes of it.
    nan_as_float4: int = 0

    # npu_dual_level_quant_matmul, whose host code asks for Ascend 950: a profile says nothing of chips, so it is taken
    # unless the profile is to stand for A2 or A3.
    ascend_950_products: Literal["accepted", "rejected"] = "accepted"

    # npu_dynamic_block_quant to float8, a block of zeros: KERNEL divides 0 by 0. Whether the cast to float8 keeps the
    # NaN depends on a mode of the vector unit that was not read.
    block_quant_zero_block: Literal["nan", "zero"] = "nan"
