from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.expert_parallel.case import ExpertParallelCase

PLAIN = ExpertParallelCase(5, ranks=2, experts=4, top_k=2)
ONE = ExpertParallelCase(1, ranks=2)
SHARED = replace(PLAIN, shared_width=32)
RAGGED = replace(PLAIN, spread="ragged", global_rows=True)
ALONE = replace(PLAIN, spread="one alone", global_rows=True)
MASKED = replace(PLAIN, top_k=1, padding="mask", spread="one alone")
ONE_RANK = replace(PLAIN, load="one rank")
MOVED = replace(PLAIN, placement="anywhere")
TWICE = replace(PLAIN, experts=2, top_k=1, redundant=2)
INT8 = replace(PLAIN, form="w8a8")
THREE = replace(RAGGED, ranks=3, experts=3)

SMALL = "1 token x 32 on 2 ranks · top 1 of 2 x 32 · bfloat16"

PAIRS = {
    "reduced_twice": Pair(PLAIN, [], SMALL, everywhere=True),
    "shared_expert_of_every_rank": Pair(SHARED, [], f"{SMALL} · shared 32", everywhere=True),
    "rows_of_absolute_places": Pair(ONE, [replace(PLAIN, tokens=17)], SMALL),
    "weights_of_copies_elsewhere": Pair(PLAIN, [ONE_RANK], SMALL),
    "real_tokens_of_all_ranks": Pair(replace(MASKED, spread="ragged"), [], "", everywhere=True),
    "own_tokens_of_everything": Pair(PLAIN, [], SMALL, everywhere=True),
    "idle_rank_has_no_work": Pair(ALONE, [replace(ALONE, load="one rank", seed=1)], ""),
    "no_mask_where_nothing_is_real": Pair(MASKED, [], f"{SMALL} · padding mask · some without", everywhere=True),
    "global_rows_of_this_rank": Pair(RAGGED, [replace(RAGGED, tokens=2)], "", rejected=True),
    "room_for_an_even_load": Pair(ONE_RANK, [replace(PLAIN, experts=2)], ""),
    "slots_before_the_rebalance": Pair(
        MOVED, [replace(MOVED, experts=2, top_k=1, seed=1)], f"{SMALL} · slots anywhere"
    ),
    "redundant_experts_not_loaded": Pair(TWICE, [replace(TWICE, tokens=1)], ""),
    "counts_for_ends_of_dispatch": Pair(PLAIN, [replace(PLAIN, experts=2)], ""),
    "scales_lost_on_the_way": Pair(
        INT8, [], "1 token x 32 on 2 ranks · top 1 of 2 x 32 · w8a8 · bfloat16", everywhere=True
    ),
    "zeros_of_unequal_splits": Pair(
        THREE,
        [replace(THREE, spread="equal", top_k=3)],
        "1 token x 32 on 3 ranks · top 1 of 2 x 32 · bfloat16 · 1 redundant",
    ),
    "int8_for_float_experts": Pair(
        PLAIN,
        [],
        f"{SMALL} · outlier",
        everywhere=True,
        otherwise=("1 token x 32 on 2 ranks · top 1 of 2 x 32 · float16",),
    ),
    "cut_without_padding": Pair(replace(RAGGED, seed=2), [RAGGED], ""),
}
