from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.swiglu_quant import SwigluQuantCase

SUMS = SwigluQuantCase(7, 64, sums="small", rounding="once")
NUMBERS = replace(SUMS, sums="none")
STEP = replace(SUMS, activation="swiglustep", limit=1.5, recipe="beyond")
OAI = replace(STEP, activation="swiglu_oai")
QUIET = "gaussian"
SMOOTH = replace(SUMS, smooth=True)
GROUPS = replace(SMOOTH, groups=3)
GROUPED_NUMBERS = replace(NUMBERS, smooth=True, groups=2)
LAST = replace(GROUPS, load="one gets all")


def line(activation="silu", before="", more=" · bfloat16 · one rounding"):
    return f"1 token x 64 · {before}{activation}{more}"


AT_LIMIT = " · bfloat16 · at limit · one rounding"
SMOOTHED = " · smooth · bfloat16 · one rounding"

PAIRS = {
    "half_by_default": Pair(SUMS, [], line(), everywhere=True),
    "limit_lost_when_quantised": Pair(
        STEP, [replace(STEP, recipe=QUIET)], line("swiglustep · limit 7", more=AT_LIMIT)
    ),
    "plain_when_quantised": Pair(OAI, [], line("swiglu_oai · limit 7 · alpha 1.702"), everywhere=True),
    "silu_of_the_limited_gate": Pair(
        replace(STEP, limit=0.5), [replace(STEP, recipe=QUIET)], line("swiglustep · limit 7", more=AT_LIMIT)
    ),
    "gate_limited_from_below": Pair(OAI, [replace(OAI, recipe=QUIET)], ""),
    "limit_of_the_operator": Pair(OAI, [replace(OAI, limit=7.0), replace(OAI, recipe=QUIET)],
                                  line("swiglu_oai · limit 10 · alpha 1.702", more=AT_LIMIT),
                                  otherwise=(("2 tokens x 64 · swiglu_oai · limit 10 · alpha 1.702 · bfloat16 · "
                                             "one rounding"),)),
    "ends_for_group_counts": Pair(GROUPS, [LAST, replace(SUMS, groups=3, tokens=1)], ""),
    "counts_for_group_ends": Pair(
        replace(GROUPED_NUMBERS, seed=1), [replace(GROUPED_NUMBERS, load="one gets all")],
        line(before="2 groups · ", more=SMOOTHED),
    ),
    "reciprocal_scale": Pair(replace(NUMBERS, smooth=True), [], line(more=SMOOTHED), everywhere=True),
    "smooth_in_the_scale_only": Pair(SMOOTH, [], line(more=SMOOTHED), everywhere=True),
    "smooth_left_out": Pair(GROUPS, [], line(more=SMOOTHED), everywhere=True),
    "scales_of_the_first_group": Pair(
        LAST, [replace(LAST, groups=1), replace(LAST, load="any", groups=1)], ""
    ),
    "bias_after_dequantisation": Pair(replace(SUMS, bias=True), [], line(before="small sums · bias · "),
                                      everywhere=True),
    "largest_element_in_bfloat16": Pair(SUMS, [], line(), everywhere=True),
}  # fmt: skip
