from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.moe_finalize import MoeFinalizeCase

PLAIN = MoeFinalizeCase(7, 3, 16)
DROPPED = replace(PLAIN, dropped="some")
PADDED = replace(PLAIN, weights="zero for padding")

PAIRS = {
    "last_row_for_none": Pair(DROPPED, [PLAIN], "1 token of 1 expert · some left out · width 64 · bfloat16"),
    "places_by_row_read_by_column": Pair(PLAIN, [], "2 tokens of 2 experts · width 64 · bfloat16", everywhere=True),
    "padding_weighs": Pair(
        PADDED, [], "3 tokens of 1 expert · width 64 · bfloat16 · weights zero for padding", everywhere=True
    ),
    "summed_twice": Pair(PLAIN, [], "1 token of 1 expert · width 64 · bfloat16", everywhere=True),
}
