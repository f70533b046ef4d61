from __future__ import annotations

from dataclasses import replace

from device import ascend
from mutant_pairs.pair import Pair
from properties.moe_gating import MoeGatingCase

NATIVE = ascend.native_gating
PLAIN = MoeGatingCase(3, 16, 4)
SCALED = replace(PLAIN, scaling=2.5)
NORMED = replace(SCALED, renormalise=True)
GROUPS = replace(PLAIN, groups=4)

PAIRS = {
    "scaled_twice": Pair(NATIVE, SCALED, [PLAIN], "1 token to 1 of 8 · softmax · scaling 2.5 · float32"),
    "scaling_left_out": Pair(NATIVE, SCALED, [PLAIN], "1 token to 1 of 8 · softmax · scaling 2.5 · float32"),
    "scaled_before_the_norm": Pair(
        NATIVE,
        NORMED,
        [],
        "1 token to 1 of 8 · softmax · renormalised · scaling 2.5 · float32",
        everywhere=True,
    ),
    "groups_left_out": Pair(NATIVE, GROUPS, [PLAIN, replace(PLAIN, groups=4, kept_groups=4)], ""),
}
