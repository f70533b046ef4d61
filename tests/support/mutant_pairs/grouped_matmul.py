from __future__ import annotations

from dataclasses import replace

from device import ascend
from mutant_pairs.pair import Pair
from properties.grouped_matmul.case import GroupedMatmulCase

PLAIN = GroupedMatmulCase(7, experts=3)
ENDS = replace(PLAIN, group_list="ends")
INT4 = replace(PLAIN, form="w4a8")
COMPOSED, FUSED_INT4 = ascend.expert_by_expert, ascend.npu_grouped_matmul_w4a8
ONE_INT4 = "1 row x 32 x 32 · 1 expert · w4a8 · bfloat16"

PAIRS = {
    "ends_taken_for_counts": Pair(
        COMPOSED,
        ENDS,
        [replace(ENDS, experts=1), replace(ENDS, load="first")],
        "3 rows x 32 x 32 · 3 experts · bfloat16 · ends",
    ),
    "first_count_from_differences": Pair(
        COMPOSED, ENDS, [replace(ENDS, experts=1)], "1 row x 32 x 32 · 2 experts · bfloat16 · ends"
    ),
    "tile_beyond_the_last_column": Pair(
        COMPOSED,
        PLAIN,
        [replace(PLAIN, columns=64), replace(PLAIN, rows_of_all=1)],
        "",
    ),
    "assist_matrix_of_two_ranks": Pair(FUSED_INT4, INT4, [], ONE_INT4, everywhere=True),
    "assist_matrix_missing": Pair(FUSED_INT4, INT4, [], ONE_INT4, everywhere=True),
    "assist_matrix_over_columns": Pair(FUSED_INT4, INT4, [], ONE_INT4, everywhere=True),
    "high_nibble_first": Pair(COMPOSED, INT4, [replace(INT4, load="none")], ONE_INT4),
    "next_matrix_for_an_empty_group": Pair(
        COMPOSED,
        replace(PLAIN, load="last"),
        [PLAIN, replace(PLAIN, load="first")],
        "1 row x 32 x 32 · 2 experts · bfloat16 · load last",
    ),
    "first_scale_of_a_column": Pair(
        COMPOSED,
        replace(INT4, inner=512, groups=2),
        [replace(INT4, inner=512, groups=2, load="none")],
        "1 row x 512 x 32 · 1 expert · w4a8 · bfloat16 · 2 scales a column",
    ),
    "bias_left_out": Pair(
        COMPOSED,
        replace(PLAIN, bias="float"),
        [replace(PLAIN, bias="float", load="none")],
        "1 row x 32 x 32 · 1 expert · bfloat16 · float bias",
    ),
    "tail_of_a_row_left_out": Pair(COMPOSED, replace(PLAIN, inner=48), [replace(PLAIN, inner=64)], ""),
}
