from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.weight_quant_matmul import WeightQuantMatmulCase

PLAIN = WeightQuantMatmulCase(3, 64, 7)
ZEROS = {"tokens": 1, "recipe": "zero rows"}
GROUPS = WeightQuantMatmulCase(3, 100, 7, scale_per="groups", group_size=32)
OFFSET = replace(PLAIN, offset="fraction")
INT4 = replace(PLAIN, bits=4, columns=8)


def line(integers="int8", per="column", more=""):
    return f"1 token x 64 x 16 · bfloat16 by {integers} · scale per {per}{more}"


PAIRS = {
    "groups_of_equal_size": Pair(
        GROUPS,
        [replace(GROUPS, inner=96)],
        "1 token x 33 x 16 · bfloat16 by int8 · scale per group of 32",
    ),
    "groups_of_128": Pair(
        GROUPS,
        [replace(GROUPS, inner=300, group_size=128)],
        line(per="group of 32"),
    ),
    "offset_of_weight_after_scaling": Pair(OFFSET, [replace(OFFSET, **ZEROS)], line(more=" · offset whole")),
    "offset_of_weight_subtracted": Pair(OFFSET, [replace(OFFSET, **ZEROS)], line(more=" · offset whole")),
    "pairs_of_weights_swapped": Pair(INT4, [replace(INT4, **ZEROS)], line("int4")),
    "weights_without_sign": Pair(INT4, [replace(INT4, recipe="positive")], line("int4")),
    "bias_of_linear_left_out": Pair(replace(PLAIN, bias=True), [], line(more=" · bias"), everywhere=True),
    "bias_in_bfloat16": Pair(
        replace(PLAIN, bias=True),
        [],
        line(more=" · bias"),
        rejected=True,
        everywhere=True,
    ),
    "sums_in_dtype_of_states": Pair(
        replace(PLAIN, inner=1000),
        [replace(PLAIN, **ZEROS)],
        line(),
    ),
}
