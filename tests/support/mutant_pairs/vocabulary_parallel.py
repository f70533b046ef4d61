from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.vocabulary_parallel import VocabularyParallelCase

PLAIN = VocabularyParallelCase(4, 2, 16)
"""Four tokens, two ranks with eight ids each: no padding."""
PADDED = replace(PLAIN, vocabulary=15)
ADDED = replace(PADDED, tokens=33, added=5, padding=4)
CHUNKS = replace(PLAIN, given="chunks", returned="chunks")
UNEVEN = replace(CHUNKS, tokens=7, division="one has all")
SMALLEST = "1 token · 2 ranks · vocabulary 8 · hidden 16 · bfloat16"

PAIRS = {
    "added_rows_behind_own_ids": Pair(ADDED, [replace(ADDED, vocabulary=16)], ""),
    "end_of_a_part_included": Pair(ADDED, [replace(PLAIN, tokens=1)], ""),
    "ids_of_others_read_the_first_row": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "rows_of_one_rank_alone": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "added_up_twice": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "padding_behind_all_tokens": Pair(
        replace(UNEVEN, returned="whole"), [replace(PLAIN, given="chunks")], ""
    ),
    "buffers_of_own_tokens": Pair(
        UNEVEN, [], f"{SMALLEST} · given chunks · returned chunks · uneven chunks", rejected=True, everywhere=True
    ),
    "padding_may_be_most_likely": Pair(
        replace(PADDED, recipe="negative"),
        [replace(PLAIN, recipe="negative")],
        "",
    ),
    "columns_as_they_are_gathered": Pair(
        ADDED, [], "1 token · 2 ranks · vocabulary 8 · 1 added · hidden 16 · bfloat16", everywhere=True
    ),
    "exchanged_without_transposition": Pair(
        replace(PLAIN, returned="chunks"), [replace(PLAIN, tokens=2, returned="chunks")],
        "3 tokens · 2 ranks · vocabulary 8 · hidden 16 · bfloat16 · returned chunks",
    ),
    "columns_up_to_a_limit": Pair(
        VocabularyParallelCase(1, 2, 65536, returned="chunks"), [],
        "1 token · 2 ranks · vocabulary 65536 · hidden 16 · bfloat16 · returned chunks", everywhere=True,
    ),
    "own_columns_times_rank": Pair(replace(PADDED, tokens=33), [replace(PLAIN, tokens=33)], ""),
    "places_on_a_rank": Pair(replace(PLAIN, tokens=33), [], SMALLEST, everywhere=True),
    "last_rank_of_equal_ones": Pair(
        replace(PLAIN, tokens=33, recipe="ties"), [VocabularyParallelCase(1, 2, 1, padding=1, recipe="ties")], "",
    ),
    "ids_in_the_dtype_of_logits": Pair(
        VocabularyParallelCase(16, 2, 1000), [VocabularyParallelCase(1, 2, 1000, seed=1)], "",
    ),
}  # fmt: skip
