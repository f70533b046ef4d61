from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.moe_gating import MoeGatingCase

PLAIN = MoeGatingCase(3, 16, 4)
SCALED = replace(PLAIN, scaling=2.5)
NORMED = replace(SCALED, renormalise=True)
GROUPS = replace(PLAIN, groups=4)

PAIRS = {
    "scaled_twice": Pair(SCALED, [PLAIN], "1 token to 1 of 8 · softmax · scaling 2.5 · float32"),
    "scaling_left_out": Pair(SCALED, [PLAIN], "1 token to 1 of 8 · softmax · scaling 2.5 · float32"),
    "scaled_before_the_norm": Pair(
        NORMED,
        [],
        "1 token to 1 of 8 · softmax · renormalised · scaling 2.5 · float32",
        everywhere=True,
    ),
    "groups_left_out": Pair(GROUPS, [PLAIN, replace(PLAIN, groups=4, kept_groups=4)], ""),
    "branch_of_the_capture": Pair(PLAIN, [], "", everywhere=True),
}
