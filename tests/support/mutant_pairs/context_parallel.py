from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.context_parallel.case import ContextParallelCase, Request


def decode(*lengths, ranks=2, interleave=1, **changes):
    requests = tuple(Request(query, kv) for query, kv in lengths)
    return ContextParallelCase(requests, "decode", ranks, 16, interleave, **changes)


def prefill(*lengths, ranks=2, **changes):
    return ContextParallelCase(tuple(Request(query, kv) for query, kv in lengths), "prefill", ranks, 16, **changes)


FIVE, ALONE = decode((1, 5)), decode((1, 5), ranks=1)
EIGHT, EIGHT_ALONE = prefill((8, 8)), prefill((8, 8), ranks=1)
ONE_ALONE = prefill((1, 1), ranks=1)

# What raises ends the ranks, and shrinking it takes minutes: where seeds end is not asked.
PAIRS = {
    "context_stretch_counted_whole": Pair(
        decode((1, 5), interleave=4), [FIVE, decode((1, 8), interleave=4), decode((1, 4), interleave=4)], ""
    ),
    "context_lengths_of_stretch_one": Pair(decode((1, 6), interleave=4), [FIVE, ALONE, decode((1, 6))], ""),
    "context_even_lengths_one_more": Pair(decode((1, 8)), [FIVE, decode((1, 7), interleave=2)], ""),
    "context_padded_below_zero": Pair(
        decode((2, 5), padded=1), [decode((2, 5)), decode((1, 5), padded=1)], "", rejected=True
    ),
    "context_drafts_counted_locally": Pair(decode((3, 10)), [FIVE, decode((3, 10), ranks=1)], ""),
    "context_bound_of_first_rank": Pair(
        decode((2, 6), interleave=4), [FIVE, decode((2, 6), interleave=4, ranks=1), decode((2, 5))], ""
    ),
    "context_global_lengths": Pair(FIVE, [ALONE], ""),
    "context_empty_shard_weighs": Pair(decode((1, 1)), [FIVE, decode((1, 2)), ALONE], ""),
    "context_empty_shard_infinite": Pair(decode((1, 1)), [FIVE, decode((1, 2)), ALONE], ""),
    "context_merge_without_maximum": Pair(replace(FIVE, recipe="hot"), [], "", everywhere=True),
    "context_merge_to_base_two": Pair(FIVE, [], "", everywhere=True),
    "context_written_everywhere": Pair(decode((1, 6)), [FIVE, ALONE], ""),
    "context_slots_dealt_by_one": Pair(decode((1, 2), interleave=2), [FIVE, decode((1, 1), interleave=2)], ""),
    "context_drafts_see_alike": Pair(decode((2, 5)), [FIVE, decode((1, 1))], ""),
    "context_drafts_before_the_first_key": Pair(decode((2, 2)), [FIVE, decode((2, 6)), decode((1, 1))], ""),
    "context_hidden_rows_present": Pair(decode((2, 2)), [FIVE, decode((2, 6)), decode((1, 1))], ""),
    "context_heads_in_another_order": Pair(replace(FIVE, own_heads=2), [FIVE, replace(ALONE, own_heads=2)], ""),
    "context_heads_not_gathered": Pair(FIVE, [ALONE], ""),
    "context_own_shard_only": Pair(FIVE, [ALONE], ""),
    "prefill_tail_mirrored": Pair(EIGHT, [EIGHT_ALONE, ONE_ALONE], ""),
    "prefill_tail_sees_head": Pair(EIGHT, [ONE_ALONE, prefill((1, 9), ranks=1)], ""),
    "prefill_padding_is_seen": Pair(prefill((7, 7)), [EIGHT, prefill((8, 11))], ""),
    "prefill_zero_keys_are_seen": Pair(prefill((7, 7)), [EIGHT, prefill((8, 11))], ""),
    "prefill_restored_as_one_request": Pair(prefill((8, 8), (4, 4)), [EIGHT, prefill((7, 7)), ONE_ALONE], ""),
    "prefill_tails_in_order": Pair(EIGHT, [EIGHT_ALONE], ""),
    "prefill_prefix_less_padding": Pair(prefill((7, 10)), [prefill((8, 10)), prefill((7, 7))], ""),
    "prefill_slots_cut_to_local": Pair(EIGHT, [EIGHT_ALONE], ""),
    "prefill_short_one_is_decoded": Pair(prefill((1, 5)), [EIGHT, prefill((2, 5))], ""),
    "prefill_empty_chunks_shift_others": Pair(
        prefill((1, 9), (8, 8)), [EIGHT, prefill((8, 8), (1, 9)), prefill((8, 8), (8, 9))], ""
    ),
    "prefill_no_mask_is_masked": Pair(EIGHT, [ONE_ALONE, prefill((1, 1))], ""),
    "prefill_ring_adds_logarithms": Pair(EIGHT, [ONE_ALONE], ""),
    "prefill_ring_sees_ahead": Pair(EIGHT, [EIGHT_ALONE], ""),
}
