"""Which page of the pool holds which tokens: permuted, shared where that is legal, stale where tokens are gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npudiff.draw.data import Stream
from npudiff.properties.sliding_attention.borders import LiveRange, border_tokens, live_range
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase

DUMMY_PAGE = 0
_SHARED_PAGES = 4
_EDGE_PAGES = 2

_MOST_IN_A_RUN = 32
"""Pages of a request up to which all are its own, where they follow each other; of more only those at borders."""


@dataclass(frozen=True)
class PagePlan:
    """A block table and what its pages are for."""

    table: np.ndarray
    """int32 ``[batch, width]``."""
    pages: int
    """Pages of the pool, the dummy page included."""
    stale: tuple[int, ...]
    """Pages whose content no request may use; the dummy page is one."""
    live: tuple[LiveRange, ...]
    """Per request, the tokens that are seen."""


def plan_pages(case: SlidingAttentionCase, *, shared_pages: bool = True) -> PagePlan:
    """Lay out the pages of the pool that the case's layer reads.

    Pages with border tokens, and the first and last live ones, are a request's own: what lies beside or at a border
    is then nowhere else. Pages between are taken from a few shared ones, also by several requests, which keeps a 128K
    history small. Pages that left the window are the dummy page or a stale one, as after eviction. Pages that are to
    follow each other are all a request's own, unless there are many; without shared pages, any are.
    """
    stream = Stream(case.seed, "pages")
    live = tuple(live_range(request, case.window) for request in case.requests)
    most = _MOST_IN_A_RUN if case.page_order == "run" else 0
    alone = most if shared_pages else case.width
    own = [_own_pages(case, request, span, alone) for request, span in zip(case.requests, live, strict=True)]
    pages = 1 + 1 + _SHARED_PAGES + sum(map(len, own))
    order = stream.permutation(pages - 1)
    names = iter([1 + index for index in (sorted(order) if case.page_order == "run" else order)])
    stale = (DUMMY_PAGE, next(names))
    shared = np.array([next(names) for _ in range(_SHARED_PAGES)])
    words = stream.random_uint64(len(live) * case.width).reshape(len(live), case.width)
    table = np.array(stale)[words % 2].astype(np.int32)
    for row, span in enumerate(live):
        if span:
            inside = slice(span.first // case.page_size, (span.last - 1) // case.page_size + 1)
            table[row, inside] = shared[words[row, inside] % _SHARED_PAGES]
            for page in own[row]:
                table[row, page] = next(names)
    unused = set(shared.tolist()) - set(np.unique(table).tolist())
    return PagePlan(table, pages, (*stale, *sorted(unused)), live)


def _own_pages(case: SlidingAttentionCase, request: Request, span: LiveRange, alone: int) -> list[int]:
    """Logical pages of a request that no other request shares: all, of up to as many as ``alone``."""
    if not span:
        return []
    first, last = span.first // case.page_size, (span.last - 1) // case.page_size
    if last - first < alone:
        return list(range(first, last + 1))
    borders = {*range(first, first + _EDGE_PAGES), *range(last - _EDGE_PAGES + 1, last + 1)}
    borders |= {token // case.page_size for token in border_tokens(case, request, span)}
    return sorted(page for page in borders if first <= page <= last)
