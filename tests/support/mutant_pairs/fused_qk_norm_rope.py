from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.fused_qk_norm_rope import FusedQkNormRopeCase

PLAIN = FusedQkNormRopeCase(3, kv_heads=2, group=2, seed=3)
STAGES = replace(PLAIN, rounding="stages")

PAIRS = {
    "positions_of_the_iteration_before": Pair(
        replace(STAGES, tokens=300, kv_heads=1, group=1), [], "", everywhere=True
    ),
    "keys_have_no_variance": Pair(replace(STAGES, kv_heads=1), [], "", everywhere=True),
    "rest_of_a_power_is_not_rotated": Pair(replace(PLAIN, head_dim=96, rotary_dim=96), [], "", everywhere=True),
    "neighbours_taken_for_halves": Pair(replace(PLAIN, style="interleaved"), [], "", everywhere=True),
    "float16_goes_through_bfloat16": Pair(replace(STAGES, dtype="float16"), [], "", everywhere=True),
    "bias_before_the_weight": Pair(replace(PLAIN, norm="weight and bias"), [], "", everywhere=True),
    "weights_as_they_are": Pair(replace(STAGES, kind="gemma"), [], "", everywhere=True),
    "gates_behind_all_queries": Pair(replace(PLAIN, gated=True), [], "", everywhere=True),
    "one_norm_for_all_heads": Pair(PLAIN, [], "", everywhere=True),
    "rest_of_a_head_is_raw": Pair(replace(PLAIN, head_dim=128), [replace(PLAIN, head_dim=128, rotary_dim=128)], ""),
    "positions_follow_the_first": Pair(STAGES, [], "", everywhere=True),
}
