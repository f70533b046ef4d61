from __future__ import annotations

from dataclasses import replace

from device.ascend.int4_pack import bytes_viewed_as_words, shifted_words
from mutant_pairs.pair import Pair
from properties.int4_pack import Int4PackCase

PLAIN = Int4PackCase(3, 16)
SEVERAL = replace(PLAIN, matrices=2)
OFFSET = replace(PLAIN, source="offset binary")
TURNED = replace(PLAIN, layout="transposed")

PAIRS = {
    "awq_column_order": Pair(shifted_words, PLAIN, [], "1 matrix of 1 x 8 · integers", everywhere=True),
    "even_column_not_masked": Pair(
        bytes_viewed_as_words,
        replace(PLAIN, recipe="negative even"),
        [replace(PLAIN, recipe="positive")],
        "1 matrix of 1 x 8 · integers",
    ),
    "even_column_above": Pair(bytes_viewed_as_words, PLAIN, [], "1 matrix of 1 x 8 · integers", everywhere=True),
    "offset_binary_as_it_is": Pair(
        shifted_words, OFFSET, [PLAIN, replace(PLAIN, source="high bits")], "1 matrix of 1 x 8 · offset binary"
    ),
    "first_matrix_only": Pair(shifted_words, SEVERAL, [PLAIN, OFFSET], "2 matrices of 1 x 8 · integers"),
    "memory_for_matrix": Pair(shifted_words, TURNED, [], "1 matrix of 2 x 8 · integers · transposed", everywhere=True),
}
