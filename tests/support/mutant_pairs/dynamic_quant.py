from __future__ import annotations

from dataclasses import replace

from device import ascend
from mutant_pairs.pair import Pair
from properties.dynamic_quant import DynamicQuantCase

PLAIN = DynamicQuantCase(4, 24)
EXPERTS = replace(PLAIN, smooth="per expert", experts=3)
INT4 = replace(PLAIN, bits=4)
FUSED, FUSED_INT4 = ascend.npu_dynamic_quant, ascend.npu_dynamic_quant_int4

PAIRS = {
    "counts_for_ends": Pair(
        ascend.composed_dynamic_quant,
        EXPERTS,
        [replace(EXPERTS, experts=1)],
        "3 tokens x 1 · int8 · bfloat16 · smooth per expert · 3 experts",
    ),
    "low_nibble_not_masked": Pair(FUSED_INT4, INT4, [], "", everywhere=True),
    "nibbles_swapped": Pair(FUSED_INT4, INT4, [], "1 token x 8 · int4 · bfloat16", everywhere=True),
    "quantised_twice": Pair(ascend.composed_dynamic_quant, PLAIN, [], "1 token x 1 · int8 · bfloat16", everywhere=True),
    "masked_lanes_hold_memory": Pair(
        ascend.composed_dynamic_quant, PLAIN, [replace(PLAIN, width=64)], "1 token x 3 · int8 · bfloat16"
    ),
}
