"""Drawing which tokens are read from which cache, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.model.constraints import Box, Constraints, allows
from npudiff.properties._shared import empty_parts
from npudiff.properties._shared.head_dims import split_head_dims
from npudiff.properties._shared.moved_data import DTYPES as TORCH_DTYPES
from npudiff.properties.cache_gather.case import AXES, DTYPES, HEAD_DIMS, STARTS, UNUSED, CacheGatherCase, Stretch
from npudiff.reference.cache_layout import LAYOUTS, strip_width

POOL_ELEMENTS = 2**17
"""Elements of the caches to which pages and requests are kept where a page alone does not have more."""

LONG_POOL_ELEMENTS = 2**21
"""The same for the few cases with long tables."""

MOST_ELEMENTS = 2**24


def cases(constraints: Constraints) -> st.SearchStrategy[CacheGatherCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> CacheGatherCase:
    choose = Chooser(draw)
    choose.draw_outlier_axis(AXES, "kv_heads", "batch")
    box = choose.pick(boxes)
    page_size = choose.value(box, "page_size", (1, 2, 16) if choose.far else (1, 2, 16, 32, 48, 64, 128, 192, 256))
    kv_heads = choose.value(box, "kv_heads", (1, 2, 3, 8))
    dtype = choose.value(box, "dtype", DTYPES)
    layout = choose.value(box, "layout", LAYOUTS)
    dims = [text for text in within(HEAD_DIMS, box.get("head_dims")) if _fills_strips(text, kv_heads, dtype, layout)]
    assume(dims)
    head_dim, value_head_dim = split_head_dims(choose.pick(dims))
    starts = choose.value(box, "starts", STARTS)
    most_pages = POOL_ELEMENTS // (page_size * kv_heads * (head_dim + value_head_dim))
    usual, offsets = _lengths(page_size, most_pages // 4), _starts(page_size, starts)
    lengths = usual
    if choose.pick(range(16)) == 15:
        lengths = [] if choose.far else _long_lengths(page_size, LONG_POOL_ELEMENTS // POOL_ELEMENTS * most_pages)
        lengths = lengths or usual
    requests = choose.draw_list(
        box,
        "batch",
        [1, 2, *(batch for batch in (3, 4) if batch <= most_pages // 2)],
        lambda: Stretch(choose.value(box, "length", choose.pick(lengths)), choose.pick(offsets)),
    )
    if allows(box.get("length", (0,)), 0):
        empty = empty_parts.which(choose.pick(empty_parts.OFTEN), len(requests))
        requests = tuple(replace(one, length=0) if place in empty else one for place, one in enumerate(requests))
    case = CacheGatherCase(
        requests=requests,
        starts=starts,
        spare_rows=choose.value(box, "spare_rows", (0, 1, 5)),
        page_size=page_size,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        dtype=dtype,
        layout=layout,
        shared_pages=choose.value(box, "shared_pages", (0, 1, 2)),
        unused=choose.value(box, "unused", UNUSED),
        spare_columns=choose.value(box, "spare_columns", (0, 1, 3)),
        seed=choose.pick(range(1024)),
    )
    widest = kv_heads * max(head_dim, value_head_dim)
    assume(widest * max(case.pages * page_size, case.rows) <= MOST_ELEMENTS)
    return case


def _lengths(page_size: int, most_pages: int) -> Sequence[Sequence[int]]:
    """Tokens that are read, by what lies in the last page: few, half of it, all but one, all; or none at all.

    That and how many pages come before are two choices, so that a fault at the border of some page shrinks to the
    first one, and one choice means the same of every page size, so that this shrinks as well. Large pages are few.
    """
    before = [pages for pages in (0, 1, 2, 3, 5) if pages <= max(1, most_pages)]
    parts = (1, 2, page_size // 2 or 1, page_size - 1 or 1, page_size)
    return [*([pages * page_size + part for pages in before] for part in parts), [0]]


def _long_lengths(page_size: int, most_pages: int) -> Sequence[Sequence[int]]:
    """Tokens of requests with tables of more than 64 and more than 128 columns."""
    return [[pages * page_size + 1, pages * page_size + page_size] for pages in (70, 130) if pages <= most_pages // 2]


def _starts(page_size: int, starts: str) -> Sequence[int]:
    """First tokens that are read; page 0 comes first."""
    pages = [0, page_size, 2 * page_size]
    return {"none": [0], "page": pages, "token": [*pages, 1, page_size - 1, page_size + 1]}[starts]


def _fills_strips(dims: str, heads: int, dtype: str, layout: str) -> bool:
    if layout != "PA_NZ":
        return True
    width = strip_width(TORCH_DTYPES[dtype])
    return all(heads * dim % width == 0 for dim in split_head_dims(dims))
