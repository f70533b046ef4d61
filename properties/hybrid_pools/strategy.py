"""Drawing sizes of pools, small enough to run out and at the borders of pages and windows, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st

from npudiff.draw.cases import Chooser, chosen
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared.head_dims import split_head_dims
from npudiff.properties.hybrid_pools.case import DIMS, POISONS, HybridPoolsCase

PAGE_SIZES = (2, 3, 4, 5, 8, 16, 32)
PAGES = (1, 2, 4, 6, 6, 8, 8, 12, 12, 12, 16, 16, 16, 16)
REQUESTS = (1, 2, 3, 4, 4, 4, 4, 4, 4)
KV_HEADS = (1, 1, 1, 2)
GROUPS = (1, 1, 2, 3)
SEEDS = (range(1), *[range(1, 4096)] * 6)  # 0 stands alone so that shrinking meets it first


def cases(constraints: Constraints) -> st.SearchStrategy[HybridPoolsCase]:
    """Return a strategy of cases without steps that lie within the constraints."""
    return chosen(partial(_draw_case, constraints.boxes))


def _draw_case(boxes: Sequence[Box], choose: Chooser) -> HybridPoolsCase:
    return draw_opening(choose, choose.pick(boxes))


def draw_opening(choose: Chooser, box: Box) -> HybridPoolsCase:
    """Draw a case without steps that lies in a box."""
    page_size = choose.value(box, "page_size", PAGE_SIZES)
    window = choose.value(box, "window", _windows(page_size))
    head_dim, value_head_dim = split_head_dims(choose.value(box, "head_dims", DIMS))
    return HybridPoolsCase(
        page_size=page_size,
        full_pages=choose.value(box, "full_pages", PAGES),
        sliding_pages=choose.value(box, "sliding_pages", PAGES),
        window=window,
        requests=choose.value(box, "requests", REQUESTS),
        prefix_sharing=choose.value(box, "prefix_sharing", (False, True, True, True, True)),
        kv_heads=choose.value(box, "kv_heads", KV_HEADS),
        group=choose.value(box, "group", GROUPS),
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        dtype=choose.value(box, "dtype", ("bfloat16", "float16")),
        poison=choose.value(box, "poison", POISONS),
        seed=choose.pick(choose.pick(SEEDS)),
    )


def _windows(page_size: int) -> Sequence[int]:
    """Tiny windows, which are cheap to leave, and those at the borders of one and two pages."""
    near = [pages * page_size + step for pages in (1, 2) for step in (-1, 0, 1)]
    return (1, 2, 3, 4, *near, 37)
