from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.moe_experts import MoeExpertsCase

PLAIN = MoeExpertsCase(7, experts=4, top_k=2)
INT8 = replace(PLAIN, form="w8a8")
STEP = replace(INT8, limit=1.5, recipe="at limit")
SHARED = replace(PLAIN, shared_width=32)
LOCAL = replace(PLAIN, here="local")
LARGE = MoeExpertsCase(1, 1024, 2048, experts=1024, top_k=1, here="chosen", seed=1)
ONE, ONE_INT8 = "1 token x 32 · top 1 of 2 x 32 · bfloat16", "1 token x 32 · top 1 of 2 x 32 · w8a8 · bfloat16"

PAIRS = {
    "no_limit_in_int8": Pair(STEP, [replace(STEP, limit=None)], ""),
    "routed_limit_for_the_shared_expert": Pair(
        replace(SHARED, limit=1.5, recipe="at limit"), [replace(SHARED, limit=1.5, shared_limit=1.5)], ""
    ),
    "shared_expert_on_two_ranks": Pair(SHARED, [], ONE + " · shared 32", everywhere=True),
    "second_half_gates": Pair(INT8, [], ONE_INT8, everywhere=True),
    "reciprocal_for_the_scale": Pair(INT8, [], ONE_INT8, everywhere=True),
    "counts_where_ends_belong": Pair(
        INT8,
        [replace(INT8, experts=1, top_k=1)],
        "2 tokens x 32 · top 1 of 2 x 32 · w8a8 · bfloat16",
    ),
    "places_of_the_other_version": Pair(PLAIN, [], "2 tokens x 32 · top 2 of 2 x 32 · bfloat16", everywhere=True),
    "numbers_of_all_for_local_matrices": Pair(LOCAL, [], ONE + " · local here", everywhere=True),
    "weights_of_missing_experts_kept": Pair(LOCAL, [PLAIN], ""),
    "scales_of_the_dispatch_discarded": Pair(INT8, [], ONE_INT8, everywhere=True),
    "bias_on_two_ranks": Pair(replace(PLAIN, biased=True), [], ONE + " · biased", everywhere=True),
    "plain_swiglu_for_oai": Pair(replace(PLAIN, activation="swiglu_oai"), [], ONE + " · swiglu_oai", everywhere=True),
    "quantised_where_latency_counts": Pair(replace(PLAIN, tokens=2), [PLAIN], ONE, rejected=True),
    "offsets_of_32_bits": Pair(
        LARGE,
        [replace(LARGE, seed=5)],
        "1 token x 1024 · top 1 of 1024 x 2048 · bfloat16 · chosen here",
        rejected=True,
        otherwise=("2 tokens x 1024 · top 1 of 1024 x 2048 · bfloat16 · chosen here",),
    ),
    "shared_rows_over_those_still_read": Pair(SHARED, [PLAIN], ONE + " · shared 32"),
}
