from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.encoder_attention import EncoderAttentionCase, Packed


def case(*lengths, **changes):
    sequences = tuple(Packed(*one) if isinstance(one, tuple) else Packed(one, one) for one in lengths)
    return EncoderAttentionCase(sequences, **changes)


ONE = case(17, seed=3)
SOME = case(17, 5, 9, seed=3)
WIDE = case(17, 5, head_dim=72, kv_heads=2, seed=3)
CROSS = case((17, 5), (4, 9), seed=3)
SINGLE = case(1, 1, 1)

PAIRS = {
    "encoder_is_causal": Pair(SOME, [SINGLE], ""),
    "encoder_scale_of_padded_dim": Pair(WIDE, [], "1 · heads 1:1 · dim 72 · bfloat16", everywhere=True),
    "every_key_weighs_the_same": Pair(SOME, [], "", everywhere=True),
    "scale_of_the_head_dim": Pair(replace(SOME, scale=4.0), [], "", everywhere=True),
    "lengths_are_not_cumulative": Pair(SOME, [], "1 1 · heads 1:1 · dim 64 · bfloat16", rejected=True, everywhere=True),
    "one_sequence_of_all": Pair(SOME, [ONE], "1 1 · heads 1:1 · dim 64 · bfloat16"),
    "sequences_of_one_length": Pair(SOME, [case(5, 5, 5, seed=3), case(4, 4, 6, seed=3)], ""),
    "padding_in_the_last_sequence": Pair(replace(SOME, padded_rows=3), [], "", everywhere=True),
    "encoder_kv_heads_in_turn": Pair(
        replace(SOME, kv_heads=2, group=3), [replace(SOME, kv_heads=2), replace(SOME, group=2)], ""
    ),
    "rows_are_cut": Pair(WIDE, [], "1 · heads 2:2 · dim 72 · bfloat16", everywhere=True),
    "keys_end_where_rows_do": Pair(CROSS, [SOME], ""),
    "only_rows_are_left_out": Pair(case((0, 5), (3, 9), seed=3), [CROSS, case((3, 9), (0, 5))], ""),
    "projection_read_as_contiguous": Pair(replace(SOME, rows="sliced"), [SOME], ""),
    "scores_in_16_bits": Pair(replace(SOME, recipe="steep"), [SINGLE], ""),
    "last_key_is_hidden": Pair(SOME, [SINGLE], ""),
}
