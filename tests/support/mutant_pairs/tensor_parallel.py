from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.tensor_parallel.case import TensorParallelCase

ROW = TensorParallelCase(5, ranks=2, layer="row", biased=True)
COLUMN = replace(ROW, layer="column")
NORM = replace(ROW, layer="row_norm_column")
STATIC = replace(ROW, format="w8a8_static", offset=7)
ROW_OF_PARTS, NORM_OF_PARTS = replace(ROW, form="sequence"), replace(NORM, form="sequence")
GATE_UP = replace(COLUMN, projections="gate_up")
GROUPS = replace(ROW, format="w4a16", scales="group", hidden=64, width=64)
TAIL = replace(GROUPS, tail=8)
INT4 = replace(ROW, format="w4a8")


def alone(case):
    """The same on one rank."""
    return [replace(case, ranks=1)]


PAIRS = {
    "bias_of_every_rank": Pair(ROW, alone(ROW), "1 token · 2 ranks · row · bfloat16 · bias"),
    "quant_bias_of_every_rank": Pair(
        STATIC, alone(STATIC), "1 token · 2 ranks · row · w8a8_static · bfloat16 · offset 7"
    ),
    "quant_bias_of_the_first_tokens": Pair(
        replace(STATIC, form="sequence"), [],
        "1 token · 2 ranks · row · sequence · w8a8_static · bfloat16 · offset 7", everywhere=True,
    ),
    "quant_bias_of_the_part": Pair(
        STATIC, [*alone(STATIC), replace(STATIC, offset=0)],
        "1 token · 2 ranks · row · w8a8_static · bfloat16 · offset 7",
    ),
    "quant_bias_of_the_first_columns": Pair(
        replace(STATIC, layer="column"), alone(replace(STATIC, layer="column")),
        "1 token · 2 ranks · column · w8a8_static · bfloat16 · offset 7",
    ),
    "bias_of_the_first_columns": Pair(COLUMN, alone(COLUMN), "1 token · 2 ranks · column · bfloat16 · bias"),
    "summed_over_ranks_twice": Pair(ROW, alone(ROW), "1 token · 2 ranks · row · bfloat16"),
    "multiplied_by_ranks": Pair(ROW, alone(ROW), "1 token · 2 ranks · row · bfloat16"),
    "averaged_over_ranks": Pair(ROW_OF_PARTS, alone(ROW_OF_PARTS), "1 token · 2 ranks · row · sequence · bfloat16"),
    "residual_of_every_rank": Pair(NORM, [], "1 token · 2 ranks · row_norm_column · bfloat16", everywhere=True),
    "residual_in_chunks": Pair(
        NORM_OF_PARTS, [*alone(NORM_OF_PARTS), replace(NORM_OF_PARTS, tokens=4)],
        "1 token · 2 ranks · row_norm_column · sequence · bfloat16", rejected=True,
    ),
    "residual_not_divided": Pair(
        NORM_OF_PARTS, alone(NORM_OF_PARTS), "2 tokens · 2 ranks · row_norm_column · sequence · bfloat16"
    ),
    "padded_rows_kept": Pair(
        replace(COLUMN, form="sequence"), [replace(COLUMN, form="sequence", tokens=4)],
        "1 token · 2 ranks · column · sequence · bfloat16", rejected=True,
    ),
    "remainder_left_out": Pair(
        ROW_OF_PARTS, [replace(ROW_OF_PARTS, tokens=4)], "1 token · 2 ranks · row · sequence · bfloat16"
    ),
    "projections_cut_as_one": Pair(GATE_UP, alone(GATE_UP), "1 token · 2 ranks · column · gate_up · bfloat16"),
    "first_columns_on_every_rank": Pair(GATE_UP, alone(GATE_UP), "1 token · 2 ranks · column · gate_up · bfloat16"),
    "heads_in_turn": Pair(
        replace(COLUMN, ranks=4, projections="shared_kv"), [replace(COLUMN, projections="shared_kv")],
        "1 token · 4 ranks · column · shared_kv · bfloat16",
    ),
    "scales_of_the_first_groups": Pair(
        GROUPS, alone(GROUPS), "1 token · 2 ranks · row · w4a8 · a scale per group · width 256 · bfloat16"
    ),
    "last_group_left_out": Pair(
        TAIL, [GROUPS],
        "1 token · row · w4a16 · a scale per group · hidden 64 · width 64 · 8 more · bfloat16",
    ),
    "scale_bias_of_all_ranks": Pair(INT4, alone(INT4), "1 token · 2 ranks · row · w4a8 · bfloat16"),
}  # fmt: skip
