from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.int4_pack import Int4PackCase

PLAIN = Int4PackCase(3, 16)
SEVERAL = replace(PLAIN, matrices=2)
OFFSET = replace(PLAIN, source="offset binary")
TURNED = replace(PLAIN, layout="transposed")

PAIRS = {
    "awq_column_order": Pair(PLAIN, [], "1 matrix of 1 x 8 · integers", everywhere=True),
    "even_column_not_masked": Pair(
        replace(PLAIN, recipe="negative even"),
        [replace(PLAIN, recipe="positive")],
        "1 matrix of 1 x 8 · integers",
    ),
    "even_column_above": Pair(PLAIN, [], "1 matrix of 1 x 8 · integers", everywhere=True),
    "offset_binary_as_it_is": Pair(
        OFFSET, [PLAIN, replace(PLAIN, source="high bits")], "1 matrix of 1 x 8 · offset binary"
    ),
    "first_matrix_only": Pair(SEVERAL, [PLAIN, OFFSET], "2 matrices of 1 x 8 · integers"),
    "memory_for_matrix": Pair(TURNED, [], "1 matrix of 2 x 8 · integers · transposed", everywhere=True),
}
