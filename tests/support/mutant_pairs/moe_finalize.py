from __future__ import annotations

from dataclasses import replace

from device import ascend
from mutant_pairs.pair import Pair
from properties.moe_finalize import MoeFinalizeCase

NATIVE = ascend.native_finalize
PLAIN = MoeFinalizeCase(7, 3, 16)
DROPPED = replace(PLAIN, dropped="some")
PADDED = replace(PLAIN, weights="zero for padding")

PAIRS = {
    "last_row_for_none": Pair(NATIVE, DROPPED, [PLAIN], "1 token of 1 expert · some left out · width 64 · bfloat16"),
    "places_by_row_read_by_column": Pair(
        ascend.finalize_by_row, PLAIN, [], "2 tokens of 2 experts · width 64 · bfloat16", everywhere=True
    ),
    "padding_weighs": Pair(
        NATIVE, PADDED, [], "3 tokens of 1 expert · width 64 · bfloat16 · weights zero for padding", everywhere=True
    ),
    "summed_twice": Pair(NATIVE, PLAIN, [], "1 token of 1 expert · width 64 · bfloat16", everywhere=True),
}
