from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.cache_gather import CacheGatherCase, Stretch


def case(*lengths, **changes):
    return CacheGatherCase(tuple(Stretch(length) for length in lengths), **changes)


def started(*stretches, **changes):
    return CacheGatherCase(tuple(Stretch(*stretch) for stretch in stretches), starts="page", **changes)


def line(tokens, layout="PA_BSND", page=1, dims="32"):
    return f"{tokens} · {layout} · page {page} · heads 1 · dim {dims} · bfloat16"


PAIRS = {
    "page_tail_dropped": Pair(
        case(150, page_size=192),
        [case(128, page_size=192), case(300, page_size=256), case(200, page_size=128)],
        line("tokens 191", page=192),
    ),
    "pages_128_wide": Pair(case(40, 3), [case(300, page_size=128), case(0)], line("tokens 1")),
    "value_of_key_dim": Pair(
        case(40, head_dim=192, value_head_dim=128),
        [case(40), case(40, kv_heads=2)],
        line("tokens 1", dims="192/128"),
    ),
    "nz_pool_read_as_nd": Pair(
        case(40, layout="PA_NZ"),
        [case(40, layout="PA_NZ", head_dim=16, value_head_dim=16)],
        line("tokens 1", "PA_NZ", page=2),
    ),
    "page_too_many": Pair(
        case(32, 5, spare_rows=3),
        [case(31, 5, spare_rows=3), case(32), case(0, 3, spare_rows=1)],
        line("tokens 1 · 1 spare row"),
    ),
    "rows_of_the_batch_before": Pair(case(5, 20), [case(20), case(10, 10, shared_pages=1)], line("tokens 1 1")),
    "pages_in_order_of_address": Pair(case(40), [case(16), case(9, 3, 0)], line("tokens 2")),
    "starts_ignored": Pair(
        started((20, 32), (3, 0)),
        [started((20, 0), (3, 0)), case(20)],
        line("tokens 1@1 · starts page"),
    ),
    "masked_lanes_are_loaded": Pair(
        case(40, 3, unused="-1"),
        [case(40, 3), case(40, unused="-1")],
        line("tokens 1 2").replace("bfloat16", "bfloat16 · unused -1"),  # two requests, or a spare column
        rejected=True,
        otherwise=(
            line("tokens 1").replace("bfloat16", "bfloat16 · 1 spare column · unused -1"),
            line("tokens 1@1 · starts page").replace("bfloat16", "bfloat16 · unused -1"),
            line("tokens 1 2").replace("bfloat16", "bfloat16 · unused -1"),
        ),
    ),
    "launch_of_no_programs": Pair(case(0), [case(0, 3)], line("tokens 0"), rejected=True),
    "table_of_the_capture": Pair(case(9, 3), [], "", everywhere=True),
}
