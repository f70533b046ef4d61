from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase


def case(query, kv, window, page_size=16, **changes):
    return SlidingAttentionCase((Request(query, kv),), window, page_size, **changes)


def line(lengths, window=1, page_size=16, dims="64", more=""):
    return f"{lengths} · window {window} · page {page_size} · heads 1:1 · dim {dims} · bfloat16{more}"


DIMS = {"head_dim": 192, "value_head_dim": 128, "page_size": 128}

PAIRS = {
    "decode_pre_tokens": Pair(case(1, 10, 3), [case(1, 10, 10), case(1, 10, None)], line("q1/kv2")),
    "decode_left_context_512": Pair(
        case(1, 10, 3),
        [case(1, 600, 512), case(1, 500, 4096), case(1, 600, None)],
        line("q1/kv2"),
    ),
    "decode_one_key_many": Pair(case(1, 10, 9), [case(1, 10, 10), case(1, 10, None)], line("q1/kv2")),
    "decode_one_key_few": Pair(case(1, 10, 10), [case(1, 10, 11), case(1, 10, None)], line("q1/kv1")),
    "extend_one_key_many": Pair(case(3, 10, 9), [case(3, 10, 10), case(3, 10, None)], line("q1/kv2")),
    "extend_one_key_few": Pair(case(3, 10, 10), [case(3, 10, 11), case(3, 10, None)], line("q1/kv2", window=2)),
    "decode_block_size_128": Pair(case(1, 250, 3, 256, spare_pages=1), [case(1, 300, 3, 128)], line("q1/kv1")),
    "extend_value_as_key_dim": Pair(
        case(3, 10, 3, **DIMS),
        [case(3, 10, 3)],
        line("q1/kv1", page_size=128, dims="192/128"),
        rejected=True,
    ),
    "extend_wrong_pool": Pair(
        case(3, 10, 3, hybrid=True),
        [case(3, 10, 3), case(3, 10, None, hybrid=True)],
        line("q1/kv1", more=" · hybrid"),
    ),
    "decode_nz_pages_as_nd": Pair(
        case(1, 10, 3, layout="PA_NZ"),
        [case(1, 10, 3, layout="PA_NZ", head_dim=16, value_head_dim=16)],
        line("q1/kv1", more=" · NZ pages"),
    ),
    "heads_padded_beside_their_buffer": Pair(case(1, 10, 3), [case(1, 10, 3, group=16)], line("q1/kv1"), rejected=True),
    "lengths_of_the_captured_step": Pair(case(1, 10, 3), [], line("q1/kv1"), everywhere=True),
}

# Where kv_length is 131072 and window 4096, these bugs exist; the rest cannot show there.
AT_LENGTH = [
    name for name in PAIRS if name not in ("extend_wrong_pool", "decode_nz_pages_as_nd", "lengths_of_the_captured_step")
]
