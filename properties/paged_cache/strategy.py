"""Drawing cases of writing into a paged cache, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared.head_dims import split_head_dims
from npudiff.properties._shared.padding import draw_place
from npudiff.properties._shared.rows import ROWS
from npudiff.properties.paged_cache.case import AXES, DTYPES, HEAD_DIMS, PADDINGS, PagedCacheCase, check_case, values
from npudiff.reference.cache_layout import LAYOUTS, strip_width

CACHE_ELEMENTS = 2**19
"""Elements of both caches up to which a case may have more than two pages."""

MOST_OF_POOL = 2**22
"""Elements of both caches of a pool that is not large on purpose, where there is a choice."""

MOST_DIMS = 1152
"""Elements of a key and a value of one head at most."""

LARGE_SLOTS, LARGE_ELEMENTS = 2**16 + 2**12, 9 * 2**20
"""Slots of a large pool, beyond 16 bits, and elements of both caches up to which it is that large."""

LARGE_SHARE = 48
"""One of so many cases has a large pool."""

MOST_TOKENS = 2**13
"""Slots of a pool up to which it may be filled."""


def cases(constraints: Constraints) -> st.SearchStrategy[PagedCacheCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> PagedCacheCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "kv_heads", "tokens", "pages")
    page_size = choose.value(box, "page_size", (2, 16, 32) if choose.far else (2, 16, 32, 48, 64, 128, 192, 256))
    large = choose.pick(range(LARGE_SHARE)) == LARGE_SHARE - 1 and not choose.far
    heads = choose.options(box, "kv_heads", (1,) if large else (1, 2, 3, 8))
    most_heads = MOST_OF_POOL // (2 * page_size * MOST_DIMS)
    kv_heads = choose.pick([count for count in heads if not choose.far or count <= most_heads] or [min(heads)])
    dtype = choose.value(box, "dtype", DTYPES)
    layout = choose.value(box, "layout", LAYOUTS)
    dims = [text for text in within(HEAD_DIMS, box.get("head_dims")) if _fills_strips(text, kv_heads, dtype, layout)]
    assume(dims)
    head_dim, value_head_dim = split_head_dims(choose.pick(dims))
    page_elements = page_size * kv_heads * (head_dim + value_head_dim)
    sizes = choose.options(box, "pages", _pages(page_size, page_elements, large))
    pages = choose.pick([count for count in sizes if large or count * page_elements <= MOST_OF_POOL] or [min(sizes)])
    room = (pages - 1) * page_size
    # The operator asks for a slot for each token, padding included: what is padding has room in the dummy page.
    padded = choose.value(box, "padded_tokens", [min(count, page_size) for count in (0, 0, 1, 3)])
    counts = sorted({1, 2, 3, page_size - 1, page_size, page_size + 1, room, room // 2 or 1} - {0})
    counts = counts if room <= MOST_TOKENS else [3, 2049, 4097]
    allowed = choose.options(box, "tokens", [count + padded for count in counts])
    tokens = choose.pick(_allowed_counts(allowed, room, padded))
    case = PagedCacheCase(
        tokens=tokens,
        padded_tokens=padded,
        padding=choose.value(box, "padding", PADDINGS),
        pages=pages,
        page_size=page_size,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        dtype=dtype,
        layout=layout,
        rows=choose.value(box, "rows", ROWS),
        slots_dtype=choose.value(box, "slots_dtype", ("int32", "int64")),
        seed=choose.pick(range(1024)),
        padding_place=draw_place(choose, box, padded),
    )
    return choose.tie_sizes(case, ("tokens", "kv_heads", "pages"), values, check_case, box)


def _pages(page_size: int, page_elements: int, large: bool) -> Sequence[int]:
    """Sizes of the pool; a large one as far as its elements allow."""
    if large:
        return [max(2, min(LARGE_SLOTS // page_size, LARGE_ELEMENTS // page_elements))]
    return [2, *(count for count in (3, 5, 9) if count * page_elements <= CACHE_ELEMENTS)]


def _allowed_counts(allowed: Sequence[int], room: int, padded: int) -> Sequence[int]:
    """Real tokens that fit into the pool; the axis counts padded ones as well."""
    fitting = [total - padded for total in allowed if 0 < total - padded <= room]
    assume(fitting)
    return fitting


def _fills_strips(dims: str, heads: int, dtype: str, layout: str) -> bool:
    if layout != "PA_NZ":
        return True
    width = strip_width(PagedCacheCase(1, dtype=dtype).torch_dtype)
    return all(heads * dim % width == 0 for dim in split_head_dims(dims))
