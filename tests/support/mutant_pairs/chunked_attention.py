from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.chunked_attention import ChunkedAttentionCase, Request


def case(*requests, **changes):
    return ChunkedAttentionCase(tuple(Request(query, kv) for query, kv in requests), **changes)


PLAIN = "page 16 · heads 1:1 · dim 64 · bfloat16"

PAIRS = {
    "chunk_slides": Pair(
        case((2, 20), (1, 5)),
        [case((7, 16), (1, 5)), case((20, 20), chunk=32)],
        f"q1/kv17 · chunk 16 · {PLAIN}",
    ),
    "chunk_is_cut_to_the_history": Pair(
        case((1, 40), (1, 35), chunk=64),
        [case((1, 40), chunk=32), case((1, 70), chunk=64), case((3, 5), chunk=64)],
        "",
        otherwise=(f"q1/kv31 · chunk 32 · {PLAIN}",),
    ),
    "chunks_begin_with_new_tokens": Pair(
        case((2, 20)), [case((20, 20)), case((4, 36), chunk=32)], f"q1/kv2 · chunk 16 · {PLAIN}"
    ),
    "whole_chunk_has_no_keys": Pair(
        case((1, 32)), [case((1, 31)), case((1, 33), (1, 5))], f"q1/kv16 · chunk 16 · {PLAIN}",
        otherwise=(f"q1/kv32 · chunk 16 · {PLAIN}",),  # what is between the borders holds; from one seed of six
    ),
    "local_table_of_tokens": Pair(
        case((1, 20)), [case((5, 12)), case((1, 20), chunk=32)], f"q1/kv17 · chunk 16 · {PLAIN}"
    ),
    "local_table_of_the_first_chunk": Pair(
        case((1, 20)), [case((1, 12)), case((1, 20), chunk=32)], f"q1/kv17 · chunk 16 · {PLAIN}"
    ),
    "chunk_of_the_next_position": Pair(
        case((3, 17)), [case((1, 20)), case((3, 40), chunk=64)], "",
        otherwise=(f"q1/kv16 · chunk 16 · {PLAIN}", f"q1/kv1 · chunk 1 · {PLAIN}"),
    ),
}  # fmt: skip
