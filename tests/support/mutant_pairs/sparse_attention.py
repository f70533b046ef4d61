from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.sliding_attention.case import Request
from npudiff.properties.sparse_attention import SparseAttentionCase

PLAIN = SparseAttentionCase((Request(1, 40), Request(2, 21)), chosen=8, seed=3)
DRAFT = replace(PLAIN, requests=(Request(3, 40),))
LONG = replace(PLAIN, requests=(Request(1, 1025),), chosen=600)
INT8 = replace(PLAIN, form="int8")

PAIRS = {
    "nothing_listed_is_a_key": Pair(replace(PLAIN, choice="fewer"), [PLAIN], ""),
    "positions_are_places": Pair(PLAIN, [], "", everywhere=True),
    "one_tile_of_keys": Pair(LONG, [replace(LONG, choice="fewer")], ""),
    "keys_behind_the_row": Pair(replace(DRAFT, choice="behind"), [], "", everywhere=True),
    "choice_of_the_row_before": Pair(DRAFT, [], "", everywhere=True),
    "no_rotated_part": Pair(PLAIN, [replace(PLAIN, requests=(Request(1, 1),))], ""),
    "one_scale_per_latent": Pair(
        INT8, [], "q1/kv1 · 1 chosen · int8 latents · page 16 · 1 head · bfloat16", everywhere=True
    ),
    "pages_of_the_first_request": Pair(PLAIN, [], "", everywhere=True),
    "lse_is_the_maximum": Pair(PLAIN, [replace(PLAIN, requests=(Request(1, 1),))], ""),
    "draft_has_one_choice": Pair(replace(DRAFT, choice="newest"), [], "", everywhere=True),
}
