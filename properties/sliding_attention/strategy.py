"""Drawing cases of sliding-window attention: axes jointly, biased to borders, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from hypothesis import strategies as st

from npudiff.draw.cases import Chooser, assume, chosen
from npudiff.model.constraints import Box, Constraints, allows, least
from npudiff.properties._shared.head_dims import split_head_dims
from npudiff.properties._shared.head_groups import has_many_pages, with_many
from npudiff.properties._shared.rows import ROWS
from npudiff.properties._shared.slots import PAGE_ORDERS
from npudiff.properties.sliding_attention.case import (
    DIMS,
    POISONS,
    RECIPES,
    SCALES,
    Request,
    SlidingAttentionCase,
)
from npudiff.properties.sliding_attention.requests import LONG, draw_requests

PAGE_SIZES = (16, 32, 48, 64, 96, 128, 192, 256)
KV_HEADS = (1, 2, 3)
GROUPS = (1, 1, 2, 3, 5, 6, 7, 8, 13)
MANY = (16, 17, 32, 64)
WINDOWS = (1, 2, 3, 4, 15, 16, 17, 31, 33, 64, 127, 128, 129, 512, 513, 4096)
SEEDS = (range(1), *[range(1, 4096)] * 6)  # 0 stands alone so that shrinking meets it first

OTHER_ROUNDINGS = ("scaled_query", "weight_sum", "exponential", "merges")
"""Where only some devices round."""

OPTED = (*OTHER_ROUNDINGS, "far_pool")
"""Axes that are the simplest where nobody asks for anything else."""

CACHE_ELEMENTS = 2**20
"""Elements of a pool up to which a case may have more than one KV head."""

SCORES = 2**19
"""Scores up to which a case may have more than one query head per KV head."""

MOST_HEADS = 256
"""Query heads that a case has at most where there is a choice; operators take no more."""

MOST_GROUP = 64
"""Query heads per KV head of such a case at most; decoding operators take no more."""

MOST_SCORES, MOST_ROWS = 2**24, 2**17
"""Scores, and rows of all heads, up to which a case may have more heads than it must."""


def cases(constraints: Constraints) -> st.SearchStrategy[SlidingAttentionCase]:
    """Return a strategy of cases that lie within the constraints."""
    return chosen(partial(_draw_case, constraints.boxes))


def _draw_case(boxes: Sequence[Box], choose: Chooser) -> SlidingAttentionCase:
    choose.draw_outlier_axis(SlidingAttentionCase.axes(), "group", "kv_heads", "batch", "head_dims")
    box = choose.pick(boxes)
    pages = choose.options(box, "page_size", PAGE_SIZES)
    page_size = choose.pick(pages[:2] if choose.far == "kv_heads" else pages)
    long = choose.pick(LONG[:1] if choose.far or choose.usual_only else LONG)
    window = choose.value(box, "window", _windows(page_size, long))
    requests = draw_requests(choose, box, page_size, window, _fewest_heads(box), long)
    head_dim, value_head_dim = split_head_dims(choose.value(box, "head_dims", DIMS))
    kv_heads = choose.pick(_kv_heads(choose, box, requests, page_size, head_dim + value_head_dim))
    group = choose.pick(_groups(choose, box, requests, page_size, kv_heads))
    sinks = choose.value(box, "sinks", (False, True))
    recipe = choose.value(box, "recipe", (*RECIPES, *RECIPES[1:2] * 5) if long == "draft" else RECIPES)
    layout = choose.value(box, "layout", _layouts(head_dim, value_head_dim))
    assume(layout in _layouts(head_dim, value_head_dim))
    case = SlidingAttentionCase(
        requests=requests,
        window=window,
        page_size=page_size,
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        dtype=choose.value(box, "dtype", ("bfloat16", "float16")),
        sinks=sinks and (recipe != "cold" or not allows(box.get("sinks", (False,)), False)),
        hybrid=choose.value(box, "hybrid", (False, True)),
        padded_rows=choose.value(box, "padded_rows", (0, 0, 1, 3)),
        spare_pages=choose.pick((0, 1, 2)),
        scale=choose.value(box, "scale", SCALES),
        recipe=recipe,
        poison=choose.value(box, "poison", POISONS),
        layout=layout,
        rows=choose.value(box, "rows", ROWS),
        page_order=choose.value(box, "page_order", (*PAGE_ORDERS[:1] * 3, *PAGE_ORDERS[1:])),
        seed=choose.pick(choose.pick(SEEDS)),
    )
    opted = [axis for axis in OPTED if axis in box]
    return replace(case, **{axis: choose.value(box, axis, ()) for axis in opted})


def _fewest_heads(box: Box) -> int:
    return int(least(box.get("kv_heads", KV_HEADS)) * least(box.get("group", GROUPS)))


def _kv_heads(choose: Chooser, box: Box, requests: Sequence[Request], page_size: int, dims: int) -> Sequence[int]:
    pages = 6 + sum(min(8, 1 + request.kv // page_size) for request in requests)
    elements = pages * page_size * dims
    defaults = [heads for heads in KV_HEADS if heads == 1 or heads * elements <= CACHE_ELEMENTS]
    options = choose.options(box, "kv_heads", defaults)
    if choose.far == "kv_heads":
        options = [
            heads for heads in options if heads * elements <= 2 * CACHE_ELEMENTS and heads <= MOST_HEADS
        ] or options[:1]
    return _up_to_most_scores(options, requests, least(box.get("group", GROUPS)))


def _groups(choose: Chooser, box: Box, requests: Sequence[Request], page_size: int, kv_heads: int) -> Sequence[int]:
    scores = kv_heads * sum(request.query * request.kv for request in requests)
    usual = with_many(GROUPS, MANY, beside_many=has_many_pages([one.kv for one in requests], page_size))
    defaults = [group for group in usual if group == 1 or group * scores <= SCORES]
    options = choose.options(box, "group", defaults)
    if choose.far:
        options = [
            group
            for group in options
            if group * scores <= 2 * SCORES and group * kv_heads <= MOST_HEADS and group <= MOST_GROUP
        ] or options[:1]
    return _up_to_most_scores(options, requests, kv_heads)


def _up_to_most_scores(options: Sequence[int], requests: Sequence[Request], times: int) -> Sequence[int]:
    scores = times * sum(request.query * request.kv for request in requests)
    rows = times * sum(request.query for request in requests)
    cheap = [option for option in options if option * scores <= MOST_SCORES and option * rows <= MOST_ROWS]
    return cheap or [min(options)]


def _layouts(head_dim: int, value_head_dim: int) -> Sequence[str]:
    """Layouts of pages: a third in NZ, where heads fill whole strips."""
    return ("PA_BSND",) if head_dim % 16 or value_head_dim % 16 else ("PA_BSND", "PA_BSND", "PA_NZ")


def _windows(page_size: int, long: str) -> Sequence[int | None]:
    """Windows: near the borders of pages and tiles, tiny ones (their borders are cheap to reach), or none.

    Half of the long histories are seen whole: what a kernel does only with many keys shows nowhere else.
    """
    windows = sorted({*WINDOWS, page_size - 1, page_size, page_size + 1})
    return [*windows, *[None] * (len(windows) if long == "draft" else len(windows) // 4)]
