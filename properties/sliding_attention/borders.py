"""The tokens of a request at which a mistake would show: edges of the window, of rows, of pages, and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from npudiff.draw.data import Stream
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase

_THRESHOLDS = (128, 512, 1024, 2048, 8192, 10_000, 65_536)
"""Key positions at which kernels change tiles, masks, tables or types: tiles of 128, masks of 512 and 2048 columns,
tables of 10,000 (regions of the catalogue of bugs), numbers of 16 bits."""

_PARTS = 8
"""A kernel that splits a long history among cores loses a part of it where this many parts begin."""

_CHOSEN = 3
"""Borders inside the visible range that a case has, of all that there are: more would share the weight."""


@dataclass(frozen=True)
class LiveRange:
    """Tokens of one request that some row sees: ``[first, last)``."""

    first: int
    last: int

    def __bool__(self) -> bool:
        """Whether any token is seen."""
        return self.first < self.last


def live_range(request: Request, window: int | None) -> LiveRange:
    """Return the tokens that some row of a request sees."""
    if not request.query:
        return LiveRange(0, 0)
    oldest_row = max(0, request.kv - request.query)
    return LiveRange(0 if window is None else max(0, oldest_row - window + 1), request.kv)


def border_tokens(case: SlidingAttentionCase, request: Request, span: LiveRange) -> list[int]:
    """Return the border tokens of one request: window edges and own keys of a few rows, page edges and thresholds."""
    first_row = request.kv - request.query
    rows = {first_row, first_row + request.query // 2, request.kv - 1}
    edges = {span.first, *rows}
    if case.window is not None:
        edges |= {row - case.window + step for row in rows for step in (0, 1)}
    pages = range(span.first // case.page_size + 1, (span.last - 1) // case.page_size + 1)
    others = sorted({page * case.page_size - side for page in (*pages[:1], *pages[-1:]) for side in (0, 1)})
    others += [threshold - side for threshold in _THRESHOLDS for side in (0, 1)]
    others += [span.first + part * (span.last - span.first) // _PARTS for part in range(1, _PARTS)]
    others = [position for position in others if span.first <= position < span.last]
    if others:
        chosen = Stream(case.seed, f"needles {request.query} {request.kv}").integers(0, len(others), _CHOSEN)
        edges |= {others[index] for index in chosen}
    return sorted(position for position in edges if span.first <= position < span.last)
