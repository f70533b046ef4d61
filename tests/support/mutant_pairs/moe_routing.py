from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.moe_routing import MoeRoutingCase

PLAIN = MoeRoutingCase(7, 8, 2, 16)
LOCAL = replace(PLAIN, local=True)
SMALLEST = "1 token to 1 of 4 · width 1 · bfloat16"
SMALLEST_LOCAL = "1 token to 1 of 4 · 1 to 2 here · width 1 · bfloat16"

PAIRS = {
    "first_count_is_the_seconds": Pair(PLAIN, [replace(PLAIN, top_k=8)], SMALLEST),
    "ends_for_counts": Pair(PLAIN, [MoeRoutingCase(7, 1, 1, 16)], SMALLEST),
    "all_experts_are_here": Pair(
        LOCAL, [PLAIN], SMALLEST_LOCAL, otherwise=(SMALLEST_LOCAL.replace("1 to 2", "1 to 1"),)
    ),
    "row_of_the_last_for_none": Pair(LOCAL, [replace(LOCAL, experts=1, top_k=1)], SMALLEST_LOCAL),
    "factors_of_the_first_expert": Pair(
        replace(PLAIN, form="smoothed"),
        [replace(PLAIN, form="smoothed", seed=3)],
        "",
    ),
    "scales_in_the_order_of_tokens": Pair(
        replace(PLAIN, form="with scales"),
        [replace(PLAIN, form="with scales", tokens=1)],
        "",
    ),
    "experts_of_the_capture": Pair(PLAIN, [], "", everywhere=True),
}
