"""Drawing cases of sliding-window attention: axes jointly, biased to borders, within what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from npudiff.constraints import Allowed, Box, Constraints
from properties.sliding_attention.case import POISONS, RECIPES, Request, SlidingAttentionCase, split_head_dims

PAGE_SIZES = (16, 32, 48, 64, 96, 128, 192, 256)
KV_HEADS = (1, 2, 3)
GROUPS = (1, 2, 3, 5, 6, 8, 13)
HEAD_DIMS = ("64", "128", "192/128", "80", "96", "192", "256")
WINDOWS = (1, 2, 3, 4, 15, 16, 17, 31, 33, 64, 127, 128, 129, 512, 513, 4096)
LONG_HISTORIES = (1025, 4097, 8193, 10_001, 32_769, 131_072)
SCALES = (1.0, 0.5, 4.0)

MAX_LENGTH = 2**20
MAX_QUERY = 512
CACHE_ELEMENTS = 2**20
"""Elements of a pool up to which a case may have more than one KV head."""

SCORES = 2**22
"""Scores up to which a case may have more than one query head per KV head."""


def cases(constraints: Constraints) -> st.SearchStrategy[SlidingAttentionCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> SlidingAttentionCase:
    box = boxes[0] if len(boxes) == 1 else draw(st.sampled_from(boxes))
    page_size = draw(_values(box, "page_size", PAGE_SIZES))
    window = draw(_windows(box, page_size))
    long = draw(st.integers(0, 15)) == 15
    requests = draw(_requests(box, page_size, window, long=long))
    head_dim, value_head_dim = split_head_dims(draw(_values(box, "head_dims", HEAD_DIMS)))
    kv_heads = draw(_values(box, "kv_heads", _affordable_kv_heads(requests, page_size, head_dim + value_head_dim)))
    group = draw(_values(box, "group", _affordable_groups(requests, kv_heads)))
    sinks = draw(_values(box, "sinks", (False, True)))
    recipe = draw(_values(box, "recipe", RECIPES))
    case = SlidingAttentionCase(
        requests=requests,
        window=window,
        page_size=page_size,
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        dtype=draw(_values(box, "dtype", ("bfloat16", "float16"))),
        sinks=sinks and recipe != "cold",  # a sink dwarfs scores of -60,000: there would be nothing to compare
        hybrid=draw(_values(box, "hybrid", (False, True))),
        padded_rows=draw(_values(box, "padded_rows", (0, 1, 3))),
        spare_pages=draw(st.integers(0, 2)),
        scale=draw(_values(box, "scale", SCALES)),
        recipe=recipe,
        poison=draw(_values(box, "poison", POISONS)),
        seed=draw(st.integers(0, 2**16 - 1)),
    )
    return case


def _affordable_kv_heads(requests: Sequence[Request], page_size: int, dims: int) -> Sequence[int]:
    pages = 6 + sum(min(3, 1 + request.kv // page_size) for request in requests)
    return [heads for heads in KV_HEADS if heads == 1 or heads * pages * page_size * dims <= CACHE_ELEMENTS]


def _affordable_groups(requests: Sequence[Request], kv_heads: int) -> Sequence[int]:
    scores = kv_heads * sum(request.query * request.kv for request in requests)
    return [group for group in GROUPS if group == 1 or group * scores <= SCORES]


def _values(box: Box, axis: str, defaults: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Values of an axis: the defaults that are allowed, or else whatever is allowed."""
    allowed = box.get(axis)
    return st.sampled_from(defaults if allowed is None else _allowed(defaults, allowed))


def _allowed(defaults: Iterable[Any], allowed: Allowed) -> Sequence[Any]:
    chosen = [value for value in defaults if value in allowed]
    if chosen:
        return chosen
    return allowed if isinstance(allowed, range) else list(allowed)


def _windows(box: Box, page_size: int) -> st.SearchStrategy[int | None]:
    """Windows: none, or near the borders of pages, tiles and of nothing at all."""
    sized = sorted({*WINDOWS, page_size - 1, page_size, page_size + 1} - {0})
    allowed = box.get("window")
    return st.sampled_from([None, *sized] if allowed is None else _allowed([*sized, None], allowed))


@st.composite
def _requests(
    draw: st.DrawFn, box: Box, page_size: int, window: int | None, *, long: bool
) -> tuple[Request, ...]:
    batch = draw(_values(box, "batch", (1, 2, 3, 4)))
    blind = draw(_values(box, "blind_rows", ("none", "none", "empty", "any")))
    kind = draw(st.sampled_from(("decode", "extend", "mixed")))
    requests = [draw(_request(box, page_size, window, kind, blind=blind, long=long and not i)) for i in range(batch)]
    return tuple(requests)


@st.composite
def _request(
    draw: st.DrawFn, box: Box, page_size: int, window: int | None, kind: str, *, blind: str, long: bool
) -> Request:
    query = draw(_query_lengths(box, kind))
    total = draw(_kv_lengths(box, page_size, window, query, blind=blind, long=long))
    return Request(query if blind == "any" or (blind == "empty" and not total) else min(query, total), total)


def _query_lengths(box: Box, kind: str) -> st.SearchStrategy[int]:
    """New tokens: 1 for a decode, 2 to 8 for a verified draft, more for a chunk of a prompt."""
    allowed = box.get("query_length", range(1, MAX_QUERY + 1))
    few = [length for length in range(1, 9) if length in allowed]
    many = [length for length in (15, 16, 17, 33, 64, 127, 128, 129, 200, 300) if length in allowed]
    if not few and not many:
        return st.sampled_from(_allowed((), allowed))
    decode = [1] if 1 in allowed else few or many
    if kind == "decode":
        return st.sampled_from(decode)
    if kind == "extend":
        return st.sampled_from([*few, *many])
    return st.one_of(st.sampled_from(decode), st.sampled_from([*few, *many]))


def _kv_lengths(
    box: Box, page_size: int, window: int | None, query: int, *, blind: str, long: bool
) -> st.SearchStrategy[int]:
    """Total tokens: anything small, or one away from a border of the window, of a page, of the query, or far out."""
    allowed = box.get("kv_length", range(MAX_LENGTH + 1))
    low = query if blind == "none" else 0
    small = [length for length in range(low, low + 3 * page_size) if length in allowed]
    borders = {page_size * pages + step for pages in (1, 2, 3) for step in (-1, 0, 1)} | {query, query + 1}
    if window is not None:
        borders |= {window + step for step in (-1, 0, 1, 2, page_size, page_size + 1, query, query + 1)}
        borders.add(2 * window + 1)
    if blind != "none":
        borders |= {0, max(0, query - 1)}
    if long:
        borders = set(LONG_HISTORIES)
    near = sorted(length for length in borders if length >= low and length in allowed)
    if long and near:
        return st.sampled_from(near)
    options = [st.sampled_from(lengths) for lengths in (small, near) if lengths]
    if not options:
        return st.sampled_from(_allowed((), allowed))
    return st.one_of(options[0], *options[-1:] * 2)
