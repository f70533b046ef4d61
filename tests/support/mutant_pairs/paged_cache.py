from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.paged_cache import PagedCacheCase
from npudiff.text import counted


def line(tokens, layout, dims="32", slots="int32"):
    return f"{counted(tokens, 'token')} · {layout} · pages 2 x 2 · heads 1 · dim {dims} · bfloat16 · {slots} slots"


NARROW = {"head_dim": 16, "value_head_dim": 16}

PAIRS = {
    "nz_pool_written_as_nd": Pair(
        PagedCacheCase(5, layout="PA_NZ"),
        [PagedCacheCase(5, layout="PA_NZ", **NARROW)],
        line(1, "PA_NZ"),
    ),
    "cache_mode_default_on_nd": Pair(
        PagedCacheCase(5),
        [PagedCacheCase(5, **NARROW)],
        line(1, "PA_BSND", dims="64"),
    ),
    "slots_int64_as_int32": Pair(
        PagedCacheCase(5, slots_dtype="int64"),
        [PagedCacheCase(1, slots_dtype="int64")],
        line(2, "PA_BSND", slots="int64"),
    ),
    "slots_truncated": Pair(PagedCacheCase(5), [PagedCacheCase(1)], line(2, "PA_BSND")),
    "nz_rows_of_key_dim": Pair(
        PagedCacheCase(5, layout="PA_NZ", head_dim=192, value_head_dim=128),
        [PagedCacheCase(5, layout="PA_NZ")],
        line(1, "PA_NZ", dims="64/16"),
        otherwise=(line(1, "PA_NZ", dims="192/128"),),
    ),
    "strides_from_shapes": Pair(
        PagedCacheCase(5, rows="sliced"),
        [PagedCacheCase(5)],
        line(2, "PA_BSND") + " · sliced rows",
    ),
    "pools_cut_by_elements": Pair(PagedCacheCase(5), [PagedCacheCase(5, dtype="int8")], line(1, "PA_BSND")),
    "padded_rows_of_a_batch_before": Pair(
        PagedCacheCase(5),
        [PagedCacheCase(64, pages=3, page_size=64)],
        line(1, "PA_BSND"),
    ),
    "slots_read_on_the_host": Pair(PagedCacheCase(5), [], "", everywhere=True),
}
