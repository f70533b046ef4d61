"""Which cases are tried for the smallest one: written from what a case may be, and not from what is drawn.

A field that a space does not name has its plainest value. Fields are left out where other values make a case larger
(padded rows, spare pages, sinks), or only say how the same elements lie in memory. Seeds are the first few.
"""

from __future__ import annotations

from typing import Any

from exhaustive import Space
from npudiff.properties._shared.head_dims import split_head_dims
from npudiff.properties._shared.padding import PADDINGS
from npudiff.properties.cache_gather import CacheGatherCase, Stretch
from npudiff.properties.dynamic_quant import RECIPES as QUANT_RECIPES
from npudiff.properties.dynamic_quant import DynamicQuantCase
from npudiff.properties.moe_routing import LOADS, MoeRoutingCase
from npudiff.properties.page_allocation import Growth, PageAllocationCase
from npudiff.properties.paged_cache import PagedCacheCase
from npudiff.properties.quant_matmul import QuantMatmulCase
from npudiff.properties.rms_norm import RECIPES as NORM_RECIPES
from npudiff.properties.rms_norm import WEIGHTS, RmsNormCase
from npudiff.properties.rotary import DIMS, RotaryCase
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.properties.swa_mask import SwaMaskCase
from npudiff.properties.swiglu import RECIPES as GATE_RECIPES
from npudiff.properties.swiglu import SwigluCase
from npudiff.reference.cache_layout import LAYOUTS
from npudiff.reference.moe_routing import FORMS
from npudiff.reference.rotary import STYLES

ROWS = ("contiguous", "sliced")
HALVES = ("bfloat16", "float16")
FLOATS = (*HALVES, "float32")
YES_NO = (False, True)
SIZES = range(1, 2**16 + 1)
SEEDS = range(4)


def _masks() -> Space:
    """Two requests at most: the size is their number. Lengths around a few windows, and where a table ends."""
    lengths = (*range(9), 9_999, 10_000, 10_001)
    return Space(
        SwaMaskCase,
        {"window": (None, *range(1, 9)), "spare": (0, 1, 2), "dtype": ("int32", "int64"), "column": YES_NO},
        {"kv_lengths": (*((one,) for one in lengths), *((one, two) for one in lengths for two in lengths))},
    )


def _growth(prefix: int, new: int, other: int | None, other_new: int, **fields: Any) -> PageAllocationCase:
    others = () if other is None else (Growth(other, other_new),)
    return PageAllocationCase((Growth(prefix, new), *others), **fields)


def _allocations() -> Space:
    """Prefixes up to two pages: beyond, only whole pages come before. A request alone has three elements."""
    return Space(
        _growth,
        {"page_size": range(1, 6), "prefix": range(11), "other": (None, *range(6)), "seed": SEEDS},
        {"new": range(1, 17), "other_new": range(1, 17), "spare_pages": range(8)},
    )


def _gathers(
    length: int, start: int, other: int | None, page_size: int, starts: str, dims: str, **fields: Any
) -> CacheGatherCase:
    head_dim, value_head_dim = split_head_dims(dims)
    first = Stretch(length, start * page_size)
    requests = (first,) if other is None else (first, Stretch(other))
    return CacheGatherCase(
        requests, starts, page_size=page_size, head_dim=head_dim, value_head_dim=value_head_dim, **fields
    )


def _writes(**narrower: Any) -> Space:
    """Two pages at least, of which one is for padding: of one token, since operators ask for a slot for each.

    17 tokens and their slots have more than 2,200 elements.
    """

    def make(dims: str, **fields: Any) -> PagedCacheCase:
        head_dim, value_head_dim = split_head_dims(dims)
        return PagedCacheCase(head_dim=head_dim, value_head_dim=value_head_dim, **fields)

    free = {
        "dims": ("32", "64", "96", "128", "192/128"),
        "dtype": ("bfloat16", "int8"),
        "layout": LAYOUTS,
        "slots_dtype": ("int32", "int64"),
        "padding": PADDINGS,
        "seed": range(2),
    }
    return Space(
        make,
        free | narrower,
        {
            "kv_heads": SIZES,
            "page_size": SIZES,
            "pages": range(2, 2**16),
            "tokens": range(1, 17),
            "padded_tokens": range(2),
        },
    )


def _reads(**narrower: Any) -> Space:
    """Two requests at most; three seeds of the order of pages. Elements of a head are moved together."""
    free = {
        "page_size": (1, 2, 3, 4, 192),
        "starts": ("none", "page"),
        "start": (0, 1),
        "other": (None, 0, 1, 2),
        "dims": ("32", "64", "192/128"),
        "dtype": ("bfloat16", "int8"),
        "layout": ("PA_BSND", "PA_NZ"),
        "unused": ("page 0", "-1"),
        "seed": range(3),
    }
    return Space(
        _gathers,
        free | narrower,
        {"kv_heads": range(1, 9), "length": range(193), "spare_rows": range(4), "spare_columns": range(2)},
    )


def _rotations() -> Space:
    def make(dims: str, **fields: Any) -> RotaryCase:
        rotary_dim, _, head_dim = dims.partition("/")
        return RotaryCase(rotary_dim=int(rotary_dim), head_dim=int(head_dim or rotary_dim), **fields)

    return Space(
        make,
        {
            "dims": DIMS,
            "dtype": ("bfloat16", "float32"),
            "style": STYLES,
            "positions": ("consecutive", "scattered", "last"),
            "data": ("numbers", "cosines"),
            "rows": ROWS,
            "seed": range(2),
        },
        {"tokens": SIZES, "heads": SIZES, "kv_heads": SIZES, "table": SIZES},
    )


def _norms() -> Space:
    return Space(
        RmsNormCase,
        {
            "dtype": FLOATS,
            "residual": YES_NO,
            "kind": ("plain", "gemma"),
            "recipe": NORM_RECIPES,
            "weights": WEIGHTS,
            "rounding": ("once",),
            "rows": ROWS,
            "seed": SEEDS,
        },
        {"tokens": SIZES, "hidden_size": SIZES},
    )


def _quantisations() -> Space:
    return Space(
        DynamicQuantCase,
        {
            "dtype": HALVES,
            "bits": (8, 4),
            "smooth": ("none", "for all", "per expert"),
            "recipe": QUANT_RECIPES,
            "rows": ROWS,
            "seed": SEEDS,
        },
        {"experts": range(1, 9), "tokens": SIZES, "width": SIZES},
    )


def _activations() -> Space:
    """Limits: none, one that 16 bits hold and the data reach; and the same of the experts that are not at hand."""
    return Space(
        SwigluCase,
        {
            "dtype": FLOATS,
            "activation": ("silu", "swiglustep", "swiglu_oai"),
            "limit": (None, 7.0, 0.5),
            "shared_limit": (None, 7.0),
            "experts": ("routed", "shared"),
            "alpha": (1.702, 1.0),
            "layout": ("halves", "interleaved"),
            "recipe": GATE_RECIPES,
            "seed": SEEDS,
        },
        {"tokens": SIZES, "width": SIZES},
    )


def _routings() -> Space:
    return Space(
        MoeRoutingCase,
        {"dtype": ("bfloat16",), "form": FORMS, "local": YES_NO, "load": LOADS, "rows": ROWS, "seed": SEEDS},
        {"experts": range(1, 9), "top_k": range(1, 9), "tokens": SIZES, "width": SIZES},
    )


def _products() -> Space:
    """Large sums only: two rows and two columns at most, since each element of the output is a sum of its own."""
    return Space(
        QuantMatmulCase,
        {
            "bits": (8, 4),
            "output": ("int32",),
            "bias": ("none", "int32"),
            "recipe": ("extremes", "cancelling"),
            "seed": range(2),
        },
        {"tokens": (1, 2), "columns": (1, 2), "inner": SIZES},
    )


def _attention(query: int, kv: int, other: int | None, dims: str, **fields: Any) -> SlidingAttentionCase:
    head_dim, value_head_dim = split_head_dims(dims)
    others = () if other is None else (Request(1, other),)
    requests = (Request(query, kv), *others)
    return SlidingAttentionCase(requests, head_dim=head_dim, value_head_dim=value_head_dim, **fields)


def _attentions(**narrower: Any) -> Space:
    """Lengths of up to a page and a token, a second request beside; recipes of values alone are larger or the same."""
    free = {
        "query": range(1, 9),
        "kv": range(18),
        "other": (None, 1),
        "window": (None, 1, 2, 3),
        "page_size": (16, 32, 48, 64),
        "dims": ("64", "128"),
        "dtype": HALVES,
        "recipe": ("gaussian", "needle"),
    }
    return Space(_attention, free | narrower, {"kv_heads": (1, 2), "group": (1, 2), "spare_pages": (0, 1)})


SPACES = {
    "mask_minus_one": _masks(),
    "mask_table_of_10000": _masks(),
    "extend_crosses_page": _allocations(),
    "padded_requests_take_pages": _allocations(),
    "verify_one_row_one_head": _attentions(kv=range(10), other=(None,), dtype=("bfloat16",)),
    "decode_short_history_lost": _attentions(
        query=(1,), kv=range(66), other=(None,), window=(None, 1, 2), dtype=("bfloat16",), recipe=("gaussian",)
    ),
    "pages_in_order_of_address": _reads(),
    "nz_pool_read_as_nd": _reads(),
    "page_tail_dropped": _reads(
        page_size=(192,), dims=("32", "64"), dtype=("bfloat16",), layout=("PA_BSND",), unused=("page 0",), seed=(0,)
    ),
    "slots_truncated": _writes(layout=("PA_BSND",)),
    "nz_rows_of_key_dim": _writes(
        dtype=("bfloat16",), layout=("PA_NZ",), slots_dtype=("int32",), padding=("slot 0",), seed=(0,)
    ),
    "always_halves": _rotations(),
    "positions_without_offset": _rotations(),
    "variance_halved": _norms(),
    "rounded_before_the_weight": _norms(),
    "counts_for_ends": _quantisations(),
    "masked_lanes_hold_memory": _quantisations(),
    "step_without_limit": _activations(),
    "halves_for_interleaved": _activations(),
    "first_count_is_the_seconds": _routings(),
    "scales_in_the_order_of_tokens": _routings(),
    "one_limit_for_all": _activations(),
    "sums_in_float32": _products(),
}
"""A space for each mutant whose smallest case is looked for."""
