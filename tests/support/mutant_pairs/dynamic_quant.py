from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.dynamic_quant import DynamicQuantCase

PLAIN = DynamicQuantCase(4, 24)
EXPERTS = replace(PLAIN, smooth="per expert", experts=3)
INT4 = replace(PLAIN, bits=4)

PAIRS = {
    "counts_for_ends": Pair(
        EXPERTS,
        [replace(EXPERTS, experts=1)],
        "3 tokens x 1 · int8 · bfloat16 · smooth per expert · 3 experts",
    ),
    "low_nibble_not_masked": Pair(INT4, [], "", everywhere=True),
    "nibbles_swapped": Pair(INT4, [], "1 token x 8 · int4 · bfloat16", everywhere=True),
    "quantised_twice": Pair(PLAIN, [], "1 token x 1 · int8 · bfloat16", everywhere=True),
    "masked_lanes_hold_memory": Pair(PLAIN, [replace(PLAIN, width=64)], "1 token x 3 · int8 · bfloat16"),
}
