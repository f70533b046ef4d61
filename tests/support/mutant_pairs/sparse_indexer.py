from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.sliding_attention.case import Request
from npudiff.properties.sparse_indexer import SparseIndexerCase

PLAIN = SparseIndexerCase((Request(1, 40), Request(2, 21)), count=8, heads=4, seed=3)
DRAFT = replace(PLAIN, requests=(Request(3, 40),))
INT8 = replace(PLAIN, form="int8")
ALL = replace(PLAIN, count=64)

PAIRS = {
    "products_are_not_rectified": Pair(PLAIN, [ALL], ""),
    "absolute_weights": Pair(PLAIN, [ALL], ""),
    "rows_see_what_is_behind": Pair(replace(DRAFT, count=64), [], "", everywhere=True),
    "own_token_unseen": Pair(ALL, [], "", everywhere=True),
    "first_keys_only": Pair(replace(PLAIN, requests=(Request(1, 10_001),)), [], "", everywhere=True),
    "choice_in_pages_of_the_first": Pair(PLAIN, [ALL], ""),
    "heads_of_the_first_group": Pair(replace(PLAIN, heads=32), [replace(ALL, heads=32)], ""),
    "keys_without_scales": Pair(INT8, [replace(INT8, count=64)], ""),
    "heads_without_scales": Pair(INT8, [replace(INT8, count=64)], ""),
    "empty_places_hold_token_0": Pair(ALL, [PLAIN], ""),
    "keys_come_last": Pair(ALL, [PLAIN], ""),
    "choice_of_another_row": Pair(replace(DRAFT, form="int8"), [], "", everywhere=True),
}
