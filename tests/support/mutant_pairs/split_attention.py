from __future__ import annotations

from mutant_pairs.pair import Pair
from mutant_pairs.sliding_attention import case, line
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase

# Four parts of a page of 16 tokens each.
LAST_PART = case(1, 60, 3)
TWO_PARTS = case(1, 50, 3)
ROWS_IN_TWO_PARTS = case(4, 34, 1)
BETWEEN = (line("q15/kv17"), line("q1/kv1 q15/kv17"))


def batch(*lengths, window=3, **changes):
    return SlidingAttentionCase(tuple(Request(query, kv) for query, kv in lengths), window, **changes)


BLIND_LATER = batch((1, 9), (1, 9), (3, 2), (1, 9), group=2)

PAIRS = {
    "split_window_edge_kept": Pair(case(1, 10, 9), [case(1, 10, 10), case(1, 10, None)], line("q1/kv2")),
    "split_first_tile_unwindowed": Pair(
        case(1, 10, 3),
        [case(10, 10, 3), case(1, 10, 10), case(1, 10, None)],
        line("q1/kv2"),
    ),
    "split_clear_by_two_origins": Pair(
        BLIND_LATER,
        [
            batch((1, 9), (1, 9), (3, 2), (1, 9)),
            batch((3, 2), (1, 9), (1, 9), group=2),
            batch((1, 9), (2, 2), (1, 9), group=2),
        ],
        "",
    ),
    "split_remainder_head_cleared": Pair(
        case(2, 10, 3, group=13),
        [case(2, 10, 3, group=8), case(2, 10, 3), case(2, 10, None, group=13)],
        line("q1/kv1").replace("heads 1:1", "heads 7:1"),
    ),
    "split_tile_without_keys": Pair(  # of the draws of CI; q1/kv0 fails as well, and few changes lead there from here
        ROWS_IN_TWO_PARTS,
        [LAST_PART, TWO_PARTS, case(2, 34, None)],
        line("q15/kv17"),
        otherwise=(*BETWEEN, line("q1025/kv1025")),
    ),
    "split_query_padded_to_window": Pair(
        case(1, 10, 3),
        [case(10, 10, 3), case(1, 10, 1)],
        line("q1/kv2", window=2),
        rejected=True,
    ),
    "split_sentinel_of_50000": Pair(case(1, 10, 3, recipe="cold"), [case(1, 10, 3)], line("q1/kv1", more=" · cold")),
    "split_minus_infinity_unguarded": Pair(
        ROWS_IN_TWO_PARTS, [LAST_PART, TWO_PARTS, case(2, 34, None)], line("q1/kv0"), otherwise=BETWEEN
    ),
    "split_two_masks_added": Pair(case(3, 2, 3), [case(3, 0, 3), LAST_PART, case(4, 34, None)], line("q2/kv1")),
    "split_reads_stale_pages": Pair(
        case(1, 40, 3, poison="nan"),
        [case(1, 40, 40, poison="nan"), case(1, 40, None, poison="nan")],
        line("q1/kv2", more=" · NaN poison"),
    ),
    "split_tail_not_cleared": Pair(
        case(1, 40, 3, poison="nan"),
        [case(1, 48, 3, poison="nan")],
        line("q1/kv1", more=" · NaN poison"),
    ),
    "split_sink_seeded_again": Pair(
        case(1, 60, 3, sinks=True),
        [case(1, 60, 60, sinks=True), case(1, 60, None, sinks=True), case(1, 10, 3, sinks=True)],
        line("q1/kv17", more=" · sinks"),
        otherwise=(
            line("q1/kv1025", more=" · sinks"),
            line("q1/kv383", window=191, page_size=192, more=" · sinks"),
        ),
    ),
    "split_sink_dropped_in_merge": Pair(
        case(1, 50, 3, sinks=True),
        [case(1, 50, 3), case(1, 16, None, sinks=True), case(4, 9, 3, sinks=True)],
        "",
    ),
    "split_lse_in_other_order": Pair(
        batch((1, 40), (1, 9), group=2),
        [
            batch((1, 40), group=2),
            batch((1, 40), (1, 9)),
            batch((2, 40), (1, 9), group=2),
            batch((1, 9), (1, 9), group=2),
        ],
        "",
    ),
    "split_idle_part_writes_lse": Pair(case(1, 10, 3), [TWO_PARTS, LAST_PART, case(1, 60, None)], line("q1/kv1")),
}
