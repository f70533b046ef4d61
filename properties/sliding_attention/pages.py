"""Which page of the pool holds which tokens: permuted, shared where that is legal, stale where tokens are gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npudiff.data import Stream
from properties.sliding_attention.case import Request, SlidingAttentionCase

DUMMY_PAGE = 0
_SHARED_PAGES = 4
_EDGE_PAGES = 2


@dataclass(frozen=True)
class LiveRange:
    """Tokens of one request that some row sees: ``[first, last)``."""

    first: int
    last: int

    def __bool__(self) -> bool:
        """Whether any token is seen."""
        return self.first < self.last


@dataclass(frozen=True)
class PagePlan:
    """A block table and what its pages are for.

    Attributes
    ----------
    table : numpy.ndarray
        int32 ``[batch, width]``.
    pages : int
        Pages of the pool, the dummy page included.
    stale : tuple of int
        Pages whose content no request may use; the dummy page is one.
    live : tuple of LiveRange
        Per request, the tokens that are seen.
    """

    table: np.ndarray
    pages: int
    stale: tuple[int, ...]
    live: tuple[LiveRange, ...]


def live_range(request: Request, window: int | None) -> LiveRange:
    """Return the tokens that some row of a request sees."""
    if not request.query:
        return LiveRange(0, 0)
    oldest_row = max(0, request.kv - request.query)
    return LiveRange(0 if window is None else max(0, oldest_row - window + 1), request.kv)


def plan_pages(case: SlidingAttentionCase) -> PagePlan:
    """Lay out the pages of the pool that the case's layer reads.

    The first and last live pages of a request are its own, so that what lies beside its border tokens is too.
    Pages between are taken from a few shared ones, also by several requests, which keeps a 128K history small. Pages
    that left the window are the dummy page or a stale one, as after eviction.
    """
    stream = Stream(case.seed, "pages")
    live = tuple(live_range(request, case.window) for request in case.requests)
    own = sum(len(_own_pages(span, case.page_size)) for span in live)
    pages = 1 + 1 + _SHARED_PAGES + own
    names = iter([1 + index for index in stream.permutation(pages - 1)])
    stale = (DUMMY_PAGE, next(names))
    shared = np.array([next(names) for _ in range(_SHARED_PAGES)])
    words = stream.words(len(live) * case.width).reshape(len(live), case.width)
    table = np.array(stale)[words % 2].astype(np.int32)
    for row, span in enumerate(live):
        if span:
            inside = slice(span.first // case.page_size, (span.last - 1) // case.page_size + 1)
            table[row, inside] = shared[words[row, inside] % _SHARED_PAGES]
            for page in _own_pages(span, case.page_size):
                table[row, page] = next(names)
    return PagePlan(table, pages, (*stale, *names), live)


def _own_pages(span: LiveRange, page_size: int) -> list[int]:
    """Logical pages near the borders of a live range, which no other request shares."""
    if not span:
        return []
    first, last = span.first // page_size, (span.last - 1) // page_size
    borders = {*range(first, first + _EDGE_PAGES), *range(last - _EDGE_PAGES + 1, last + 1)}
    return sorted(page for page in borders if first <= page <= last)
