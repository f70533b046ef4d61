from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.grouped_matmul import GroupedMatmulCase

PLAIN = GroupedMatmulCase(7, experts=3)
ENDS = replace(PLAIN, group_list="ends")
INT4 = replace(PLAIN, form="w4a8")
ONE_INT4 = "1 row x 32 x 32 · 1 expert · w4a8 · bfloat16"

PAIRS = {
    "ends_taken_for_counts": Pair(
        ENDS,
        [replace(ENDS, experts=1), replace(ENDS, load="first")],
        "",
        otherwise=(
            "3 rows x 32 x 32 · 3 experts · bfloat16 · ends",
            "2 rows x 32 x 32 · 3 experts · bfloat16 · ends · load scattered",
            "2 rows x 32 x 32 · 8 experts · bfloat16 · ends · load scattered",
        ),
    ),
    "first_count_from_differences": Pair(
        ENDS, [replace(ENDS, experts=1)], "1 row x 32 x 32 · 2 experts · bfloat16 · ends"
    ),
    "tile_beyond_the_last_column": Pair(
        PLAIN,
        [replace(PLAIN, columns=64), replace(PLAIN, rows_of_all=1)],
        "",
    ),
    "assist_matrix_of_two_ranks": Pair(INT4, [], ONE_INT4, everywhere=True),
    "assist_matrix_missing": Pair(INT4, [], ONE_INT4, everywhere=True),
    "assist_matrix_over_columns": Pair(INT4, [], ONE_INT4, everywhere=True),
    "high_nibble_first": Pair(INT4, [replace(INT4, load="none")], ONE_INT4),
    "next_matrix_for_an_empty_group": Pair(
        replace(PLAIN, load="last"),
        [PLAIN, replace(PLAIN, load="first")],
        "1 row x 32 x 32 · 2 experts · bfloat16 · load last",
    ),
    "first_scale_of_a_column": Pair(
        replace(INT4, inner=512, groups=2),
        [replace(INT4, inner=512, groups=2, load="none")],
        "1 row x 512 x 32 · 1 expert · w4a8 · bfloat16 · 2 scales a column",
    ),
    "bias_left_out": Pair(
        replace(PLAIN, bias="float"),
        [replace(PLAIN, bias="float", load="none")],
        "1 row x 32 x 32 · 1 expert · bfloat16 · float bias",
    ),
    "tail_of_a_row_left_out": Pair(replace(PLAIN, inner=48), [replace(PLAIN, inner=64)], ""),
}
