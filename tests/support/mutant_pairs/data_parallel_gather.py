from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.data_parallel_gather import DataParallelGatherCase

PLAIN = DataParallelGatherCase((2, 2))
UNEQUAL = DataParallelGatherCase((1, 3, 2))
WIDE = DataParallelGatherCase((3, 2), 2)
LONGEST = replace(WIDE, mode="maximum")
CHUNKS = replace(WIDE, mode="chunks")
ONE, TWO = "1 token(s), 2 rank(s) each", "1+1 token(s), 1 rank(s) each"

PAIRS = {
    "replicated_rows_added_up": Pair(WIDE, [], f"{ONE} · sum · width 16 · bfloat16", everywhere=True),
    "replicated_slices_added_up": Pair(LONGEST, [], f"{ONE} · maximum · width 16 · bfloat16", everywhere=True),
    "rows_of_the_caller_zeroed": Pair(
        LONGEST, [], f"{ONE} · maximum · width 16 · bfloat16", rejected=True, everywhere=True
    ),
    "buffer_of_the_batch_before": Pair(PLAIN, [], f"{TWO} · sum · width 16 · bfloat16", everywhere=True),
    "padding_written_over_others": Pair(
        replace(UNEQUAL, spare=1), [], f"{TWO} · sum · 1 spare row · width 16 · bfloat16", everywhere=True
    ),
    "starts_of_padded_groups": Pair(UNEQUAL, [PLAIN], ""),
    "padding_not_zeroed": Pair(
        replace(PLAIN, spare=1), [],
        "1 token(s), 1 rank(s) each · sum · 1 spare row · width 16 · bfloat16", everywhere=True,
    ),
    "starts_of_unpadded_groups": Pair(
        replace(UNEQUAL, mode="maximum"), [replace(PLAIN, mode="maximum")], "",
    ),
    "first_rank_of_a_list": Pair(
        replace(UNEQUAL, mode="maximum"), [], f"{TWO} · maximum · width 16 · bfloat16", everywhere=True
    ),
    "real_rows_of_the_group": Pair(CHUNKS, [replace(CHUNKS, counts=(2, 4))], f"{ONE} · chunks · width 16 · bfloat16"),
    "chunks_of_real_rows": Pair(replace(CHUNKS, spare=3), [CHUNKS], ""),
    "longest_of_the_own_group": Pair(UNEQUAL, [PLAIN], "", rejected=True),
    "sum_over_data_ranks_alone": Pair(WIDE, [], f"{ONE} · sum · width 16 · bfloat16", everywhere=True),
    "added_up_again_in_the_group": Pair(WIDE, [], f"{ONE} · sum · width 16 · bfloat16", everywhere=True),
    "padding_behind_all_groups": Pair(UNEQUAL, [PLAIN], ""),
}  # fmt: skip
