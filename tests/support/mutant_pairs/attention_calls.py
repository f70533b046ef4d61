from __future__ import annotations

from mutant_pairs.pair import Pair
from mutant_pairs.sliding_attention import case, line
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase

DRAFTS = (Request(8, 10), Request(8, 40))


PAIRS = {
    "extend_symmetric_window": Pair(
        case(3, 10, 3),
        [case(3, 10, 1), case(1, 10, 3), case(3, 10, None)],
        line("q2/kv2", window=2),
    ),
    "decode_output_not_written": Pair(case(1, 10, 3), [case(1, 10, None, padded_rows=1)], line("q1/kv1")),
    "decode_mask_forgotten_past_512": Pair(
        case(1, 600, 3),
        [case(1, 513, 1), case(1, 600, 88), case(1, 512, 3), case(1, 2000, None)],
        "",
    ),
    "verify_one_row_one_head": Pair(
        SlidingAttentionCase(DRAFTS, 12, group=2),
        [
            SlidingAttentionCase(DRAFTS, 40),
            SlidingAttentionCase(DRAFTS),
            case(7, 40, 12),
        ],
        line("q8/kv8"),
    ),
    "verify_without_window": Pair(case(3, 10, 3), [case(1, 10, 3), case(3, 10, 10), case(3, 10, None)], line("q2/kv2")),
    "decode_short_history_lost": Pair(
        case(1, 2, 3, 128),
        [case(1, 3, 3, 128), case(1, 2, 3, 64), case(1, 2, None, 128), case(1, 0, 3, 128)],
        line("q1/kv1", page_size=64),
    ),
    "extend_rows_by_total_lengths": Pair(
        case(3, 10, 3),
        [case(3, 3, 3)],
        line("q1/kv2"),
        rejected=True,
    ),
}
