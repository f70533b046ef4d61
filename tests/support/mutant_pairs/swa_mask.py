from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.swa_mask import SwaMaskCase

PAIRS = {
    "mask_left_context_512": Pair(
        SwaMaskCase((10,), 3),
        [SwaMaskCase((600,), 512), SwaMaskCase((600,), None)],
        "kv2 · window 1 · capacity 2 · int32",
        otherwise=("kv513 · window 513 · capacity 513 · int32",),
    ),
    "mask_minus_one": Pair(
        SwaMaskCase((10,), None),
        [SwaMaskCase((10, 3), 3)],
        "kv1 · window none · capacity 1 · int32",
    ),
    "mask_without_tail": Pair(
        SwaMaskCase((10,), 3, 1),
        [SwaMaskCase((10, 10), 3)],
        "kv0 · window 1 · capacity 1 · int32",
    ),
    "mask_of_65535_programs": Pair(
        SwaMaskCase((70_000,), 3), [SwaMaskCase((65_535,), 3), SwaMaskCase((70_000,), None)], ""
    ),
    "mask_table_of_10000": Pair(
        SwaMaskCase((10_001,), None),
        [SwaMaskCase((10_000, 0), None, 5), SwaMaskCase((10, 0), 3)],
        "",
        rejected=True,
    ),
    "lengths_of_the_capture": Pair(SwaMaskCase((10, 4), 3), [], "kv0 · window 1 · capacity 1 · int32", everywhere=True),
}
