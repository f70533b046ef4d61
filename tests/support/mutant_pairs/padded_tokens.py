from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.padded_tokens import Batch, PaddedTokensCase

ONE = PaddedTokensCase((Batch(3),), chunk=5, experts=8, top_k=2, width=16)
FULL = replace(ONE, batches=(Batch(5),))
GATHERED = replace(ONE, batches=(Batch(3), Batch(5), Batch(2)))
IN_FRONT = replace(ONE, batches=(Batch(5), Batch(0)))
PART = replace(ONE, batches=(Batch(7, 5),))
NAN = replace(ONE, top_k=1, poison="nan")

SMALLEST = "1 rank of 2 rows · 1 real · to 1 of 4 · width 64 · bfloat16"
SMALLEST_GATHERED = "2 ranks of 2 rows · 1 real, 1 real · to 1 of 4 · width 64 · bfloat16"

PAIRS = {
    "first_rows_of_a_gathered_buffer": Pair(GATHERED, [IN_FRONT], SMALLEST_GATHERED),
    "all_real_rows_first": Pair(GATHERED, [IN_FRONT], SMALLEST_GATHERED),
    "total_of_all_ranks_for_each": Pair(
        PART,
        [replace(PART, batches=(Batch(10, 5),))],
        "1 rank of 2 rows · 1 real (from 2 on of 3) · to 1 of 4 · width 64 · bfloat16",
    ),
    "one_padded_row_too_many": Pair(ONE, [FULL], SMALLEST),
    "total_of_the_batch_before": Pair(ONE, [FULL, replace(ONE, batches=(Batch(0),), earlier="none")], SMALLEST),
    "padding_not_masked": Pair(ONE, [FULL], SMALLEST),
    "weights_times_zero": Pair(NAN, [ONE, replace(NAN, poison="large")], f"{SMALLEST} · nan"),
    "padded_rows_have_no_experts": Pair(ONE, [FULL], SMALLEST),
    "padded_experts_uninitialised": Pair(ONE, [FULL], SMALLEST),
    "padded_rows_not_counted": Pair(ONE, [FULL], SMALLEST),
    "mask_of_unpadded_chunks": Pair(ONE, [FULL], SMALLEST),
    "zeros_times_padded_rows": Pair(
        NAN, [replace(NAN, poison="stale"), replace(NAN, batches=(Batch(5),))], f"{SMALLEST} · nan"
    ),
    "distribution_of_the_capture": Pair(
        ONE,
        [replace(ONE, batches=(Batch(0),))],
        "1 rank of 2 rows · 1 real · to 1 of 4 · width 64 · bfloat16",
    ),
}
