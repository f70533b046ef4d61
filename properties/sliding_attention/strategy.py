"""Drawing cases of sliding-window attention: axes jointly, biased to borders, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from npudiff.constraints import Box, Constraints, allows
from npudiff.draw import Chooser, within
from properties.sliding_attention.case import (
    HEAD_DIMS,
    POISONS,
    RECIPES,
    Request,
    SlidingAttentionCase,
    split_head_dims,
)

PAGE_SIZES = (16, 32, 48, 64, 96, 128, 192, 256)
KV_HEADS = (1, 2, 3)
GROUPS = (1, 2, 3, 5, 6, 8, 13)
WINDOWS = (1, 2, 3, 4, 15, 16, 17, 31, 33, 64, 127, 128, 129, 512, 513, 4096)
LONG_HISTORIES = (1025, 4097, 8193, 10_001, 32_769, 131_072)
SCALES = (1.0, 0.5, 4.0)
FEW_ROWS = range(1, 9)
MANY_ROWS = (15, 16, 17, 33, 64, 127, 128, 129, 200, 300)

LONG_SHARE = 16
"""One case in this many has a long history."""

MAX_LENGTH = 2**20
MAX_QUERY = 512

CACHE_ELEMENTS = 2**20
"""Elements of a pool up to which a case may have more than one KV head."""

SCORES = 2**19
"""Scores up to which a case may have more than one query head per KV head."""


def cases(constraints: Constraints) -> st.SearchStrategy[SlidingAttentionCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> SlidingAttentionCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    page_size = choose.value(box, "page_size", PAGE_SIZES)
    window = choose.value(box, "window", _windows(page_size))
    requests = _requests(choose, box, page_size, window)
    head_dim, value_head_dim = split_head_dims(choose.value(box, "head_dims", HEAD_DIMS))
    kv_heads = choose.value(box, "kv_heads", _affordable_kv_heads(requests, page_size, head_dim + value_head_dim))
    group = choose.value(box, "group", _affordable_groups(requests, kv_heads))
    sinks = choose.value(box, "sinks", (False, True))
    recipe = choose.value(box, "recipe", RECIPES)
    return SlidingAttentionCase(
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
        seed=choose.pick(range(4096)),
    )


def _affordable_kv_heads(requests: Sequence[Request], page_size: int, dims: int) -> Sequence[int]:
    pages = 6 + sum(min(3, 1 + request.kv // page_size) for request in requests)
    return [heads for heads in KV_HEADS if heads == 1 or heads * pages * page_size * dims <= CACHE_ELEMENTS]


def _affordable_groups(requests: Sequence[Request], kv_heads: int) -> Sequence[int]:
    scores = kv_heads * sum(request.query * request.kv for request in requests)
    return [group for group in GROUPS if group == 1 or group * scores <= SCORES]


def _windows(page_size: int) -> Sequence[int | None]:
    """Windows: near the borders of pages and tiles, tiny ones (their borders are cheap to reach), or none."""
    return [*sorted({*WINDOWS, page_size - 1, page_size, page_size + 1}), None, None]


def _requests(choose: Chooser, box: Box, page_size: int, window: int | None) -> tuple[Request, ...]:
    batch = choose.value(box, "batch", (1, 2, 3, 4))
    blind = choose.value(box, "blind_rows", ("none", "none", "empty", "any"))
    kind = choose.pick(("decode", "extend", "mixed"))
    long = choose.pick(range(LONG_SHARE)) == LONG_SHARE - 1
    return tuple(
        _request(choose, box, page_size, window, "draft" if long and not i else kind, blind) for i in range(batch)
    )


def _request(choose: Chooser, box: Box, page_size: int, window: int | None, kind: str, blind: str) -> Request:
    query = choose.pick(choose.pick(_query_lengths(box, kind)))
    total = choose.pick(choose.pick(_kv_lengths(box, page_size, window, query, kind, blind)))
    may_exceed = blind == "any" or (blind == "empty" and not total)
    return Request(query if may_exceed else min(query, total), total)


def _query_lengths(box: Box, kind: str) -> Sequence[Sequence[int]]:
    """New tokens: 1 for a decode, 2 to 8 for a verified draft, more for a chunk of a prompt.

    A request with a long history is a draft, so that a case stays cheap.
    """
    allowed = box.get("query_length", range(1, MAX_QUERY + 1))
    few = [length for length in FEW_ROWS if allows(allowed, length)]
    many = [length for length in MANY_ROWS if allows(allowed, length)]
    if not few and not many:
        return [within((), allowed)]
    decode = [1] if allows(allowed, 1) else few or many
    options = {
        "decode": [decode],
        "draft": [decode, few or many],
        "extend": [few or many, many or few],
        "mixed": [decode, few or many, many or few],
    }
    return options[kind]


def _kv_lengths(
    box: Box, page_size: int, window: int | None, query: int, kind: str, blind: str
) -> Sequence[Sequence[int]]:
    """Total tokens: anything small, or one away from a border of the window, of a page, of the query, or far out."""
    allowed = box.get("kv_length", range(MAX_LENGTH + 1))

    def fits(length: int) -> bool:
        enough = length >= query or blind == "any" or (blind == "empty" and not length)
        return enough and allows(allowed, length)

    low = query if blind == "none" else 0
    small = [length for length in range(low, low + 3 * page_size) if fits(length)]
    borders = {page_size * pages + step for pages in (1, 2, 3) for step in (-1, 0, 1)} | {query, query + 1}
    if window is not None:
        borders |= {window + step for step in (-1, 0, 1, 2, page_size, page_size + 1, query, query + 1)}
        borders.add(2 * window + 1)
    if blind != "none":
        borders |= {0, max(0, query - 1)}
    if kind == "draft":
        borders = set(LONG_HISTORIES)
    near = sorted(length for length in borders if length >= 0 and fits(length))
    if kind == "draft" and near:
        return [near]
    return [lengths for lengths in (small, near, near) if lengths] or [within((), allowed)]
