"""Drawing the batch of a case: new tokens and total tokens of each request, near the borders where bugs live."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from npudiff.draw.cases import Chooser, assume
from npudiff.draw.chooser import DISTINCT, but_for_one
from npudiff.model.constraints import Allowed, Box, allows, intersection
from npudiff.properties._shared import empty_parts
from npudiff.properties.sliding_attention.case import Request

BATCHES = (1, 2, 3, 4)
MOST_SLOTS = 2**14
"""Pages of far more requests than usual, times page size and heads, at most."""
FEW_ROWS = range(1, 9)
DRAFTS = (2, 3, 4, *[8] * 5)
"""Rows of a draft that backends verify, and for which kernels have tiles: drawn more often than their neighbours."""

MANY_ROWS = (15, 16, 17, 33, 64, 127, 128, 129, 200, 300, 513)
LONG_PROMPTS = (1025, 2047, 2048, 2049, 2049, 2304)
LONG_HISTORIES = (1025, 4097, 8193, 10_001, 32_769, 70_001, 70_001, 131_072, 131_073)

DEEP_HISTORIES, DEEP_PAGES = (545, 1025, 2049), (32, 33, 40, 65)
"""Tokens, and whole pages before the last one: more than kernels hold at once, and few enough keys for many heads."""

MOST_DEEP = 2**13
"""Tokens of such a history at most."""

LONG = (*["no"] * 32, *["draft"] * 4, *["prompt"] * 2, *["deep"] * 3)
"""How often one request of a case has a long history (a draft), is a prompt around the size of compressed masks, or has
a history of some thousand tokens in a batch of decodes."""

MAX_QUERY = 2**12
MAX_LISTED = 512
MAX_LENGTH = 2**20

UNIFORM = (*["no"] * 6, "partly", *["wholly"] * 2, "but for one")
"""How often all requests have as many new tokens, or as many tokens altogether as well, or all but the middle one."""

MANY_BLIND_ROWS = (129, 200, 300, 513)
"""Rows of a request of which more than a tile may be blind."""

WAYS_DOWN = 8
"""Short options before the long ones: then shrinking need not change the kind and the length of a request at once."""

REQUEST_SCORES = 2**23
"""Scores of one request above which a cheaper length is drawn where the constraints leave one."""

Options = Sequence[int]


@dataclass(frozen=True)
class Lengths:
    """What the lengths of a request may be."""

    query: Options
    kv: Options
    """Allowed new tokens and total tokens."""
    page_size: int
    """Tokens per page."""
    window: int | None
    """Visible keys."""
    heads: int
    """The fewest query heads that the case may have."""

    def scores(self, query: int, kv: int) -> int:
        """Scores that attention computes for one request."""
        seen = kv if self.window is None else min(kv, self.window + query)
        return self.heads * query * seen

    def totals(self, query: int, blind: str) -> Options:
        """Allowed totals of a request: none of its rows is blind, all are (``empty``), or some are (``any``)."""
        ranges = {
            "none": range(query, MAX_LENGTH + 1),
            "empty": range(1 if query else 0),
            "any": range(1, query),
        }
        return ordered(intersection(ranges[blind], self.kv))

    def queries(self, among: Allowed, blind: str) -> Options:
        """The new tokens among some that are allowed, that some total goes with, and that are cheap enough."""
        allowed = ordered(intersection(among, self.query))
        allowed = allowed[:: -(-len(allowed) // MAX_LISTED) or 1]
        possible = [query for query in allowed if self.totals(query, blind)]
        return cheap(possible, lambda query: self.scores(query, self.totals(query, blind)[0]))


def ordered(allowed: Allowed) -> Options:
    """Return a collection of integers as a rising sequence; a range is not listed."""
    return allowed if isinstance(allowed, range) else tuple(sorted(allowed))


def cheap(options: Options, scores: Callable[[int], int]) -> Options:
    """Of rising options, of which each needs more scores than the one before, those that a case can afford.

    There is always one: the first.
    """
    return options[: max(1, bisect.bisect_right(options, REQUEST_SCORES, key=scores))]


def long_after_short(long: Options, short: Options) -> Options:
    """Return options of which nearly all are long ones, and the first ones short."""
    few = [option for option in short[:WAYS_DOWN] if option < long[0]]
    return (*few, *(option for option in long for _ in range(2 * WAYS_DOWN)))


def draw_requests(
    choose: Chooser, box: Box, page_size: int, window: int | None, heads: int, long: str
) -> tuple[Request, ...]:
    """Draw a batch.

    The first request that is drawn may be long or have blind rows; where it goes in the batch is the last choice, so
    that shrinking the batch leaves it alone.
    """
    lengths = Lengths(
        ordered(box.get("query_length", range(1, MAX_QUERY + 1))),
        ordered(box.get("kv_length", range(MAX_LENGTH + 1))),
        page_size,
        window,
        heads,
    )
    batch = choose.pick(_batches(choose, box, page_size, heads))
    blind = choose.value(box, "fully_masked_rows", (*("none",) * 3, "empty", "any", "any"))
    kind = choose.pick(("decode", "extend", "mixed") if long != "deep" else ("decode",))
    special = _draw_request(choose, lengths, kind if long == "no" else long, blind)
    if not allows(box.get("ragged", (True,)), True):
        lengths = replace(lengths, query=(special.query,))
    different = DISTINCT if choose.repeats("batch", batch) else batch
    others = [_draw_request(choose, lengths, kind, "none") for _ in range(different - 1)]
    others = list(islice(cycle(others), batch - 1))
    place = choose.pick((*range(batch), *range(1, batch)))  # where it is not first, places in it and the batch differ
    kept = place if long != "no" or blind != "none" else None
    requests = (*others[:place], special, *others[place:])
    alike = choose.pick(UNIFORM)
    if long == "no" and blind == "none" and alike != "no":
        requests = _uniform(requests, special, alike)
    else:
        requests = _with_empty(choose, box, requests, kept)
    assume(_is_inside(box, requests))
    return requests


def _uniform(requests: Sequence[Request], one: Request, alike: str) -> tuple[Request, ...]:
    """All requests as one of them, or with as many new tokens."""
    if alike == "wholly":
        return (one,) * len(requests)
    if alike == "but for one":
        return tuple(but_for_one(requests, one if one != requests[len(requests) // 2] else requests[0]))
    return tuple(Request(one.query, max(one.query, other.kv)) for other in requests)


def _batches(choose: Chooser, box: Box, page_size: int, heads: int) -> Sequence[int]:
    """Numbers of requests; far ones as far as their pages, of the largest dims, are no more than a pool may have."""
    options = choose.options(box, "batch", BATCHES)
    if choose.far != "batch":
        return options
    return [batch for batch in options if batch * page_size * heads <= MOST_SLOTS] or options[:1]


def _with_empty(choose: Chooser, box: Box, requests: Sequence[Request], kept: int | None) -> tuple[Request, ...]:
    """Take the new tokens of some requests away, but not of one that is kept; their history stays."""
    empty = empty_parts.which(choose.pick(empty_parts.SELDOM), len(requests))
    if not (allows(box.get("query_length", (0,)), 0) and allows(box.get("ragged", (True,)), True)):
        return tuple(requests)
    return tuple(
        replace(one, query=0) if place in empty and place != kept else one for place, one in enumerate(requests)
    )


def _is_inside(box: Box, requests: Sequence[Request]) -> bool:
    """Whether a batch has what its box insists on, which some lengths leave no room for."""
    has_blind_rows = any(request.query > request.kv for request in requests)
    is_ragged = len({request.query for request in requests}) > 1
    return (has_blind_rows or allows(box.get("fully_masked_rows", ("none",)), "none")) and (
        is_ragged or allows(box.get("ragged", (False,)), False)
    )


def _draw_request(choose: Chooser, lengths: Lengths, kind: str, blind: str) -> Request:
    """Draw one request; one without blind rows where the constraints leave no room for them."""
    options = _query_options(lengths, kind, blind)
    if not options:
        blind, options = "none", _query_options(lengths, kind, "none")
    assume(options)
    query = choose.pick(choose.pick(options))
    return Request(query, choose.pick(choose.pick(_kv_options(lengths, query, kind, blind))))


@functools.lru_cache(maxsize=4096)
def _query_options(lengths: Lengths, kind: str, blind: str) -> Sequence[Options]:
    """New tokens: 1 for a decode, 2 to 8 for a verified draft, more for a chunk of a prompt.

    A request with a long history is a draft, so that a case stays cheap.
    """
    few, many = (lengths.queries(rows, blind) for rows in (FEW_ROWS, MANY_ROWS))
    few = ordered((*few, *(rows for rows in DRAFTS if rows in few)))
    if kind == "prompt" and (prompts := lengths.queries(LONG_PROMPTS, blind)):
        return [long_after_short(prompts, few)]
    if not few and not many:
        other = lengths.queries(lengths.query, blind)
        return [other] if other else []
    decode = [1] if 1 in few else few or many
    if blind == "any" and kind in ("extend", "mixed") and (tiles := lengths.queries(MANY_BLIND_ROWS, blind)):
        return [few or many, many or few, tiles]
    options = {
        "decode": [decode],
        "draft": [decode, few or many],
        "deep": [decode, few or many],
        "extend": [few or many, many or few],
        "prompt": [many or few],
        "mixed": [decode, few or many, many or few],
    }
    return options[kind]


def _kv_options(lengths: Lengths, query: int, kind: str, blind: str) -> Sequence[Options]:
    """Total tokens: anything small, or one away from a border of the window, of a page, of the query, or far out."""
    totals = lengths.totals(query, blind)
    if blind != "none":
        return [totals, totals[-1:], totals[:WAYS_DOWN]]
    affordable = cheap(totals, lambda kv: lengths.scores(query, kv))
    far = ordered(intersection(_deep(lengths) if kind == "deep" else LONG_HISTORIES, affordable))
    small = ordered(intersection(range(query, query + 3 * lengths.page_size), affordable))
    if kind in ("draft", "deep") and far:
        return [long_after_short(far, small)]
    near = ordered(intersection(sorted(_borders(lengths, query)), affordable))
    return [options for options in (small, near, near) if options] or [affordable]


def _deep(lengths: Lengths) -> Sequence[int]:
    ends = (1, lengths.page_size // 2 + 1, lengths.page_size)
    pages = [before * lengths.page_size + last for before in DEEP_PAGES for last in ends]
    return sorted({*DEEP_HISTORIES, *(total for total in pages if total < MOST_DEEP)})


def _borders(lengths: Lengths, query: int) -> set[int]:
    page_size, window = lengths.page_size, lengths.window
    borders = {page_size * pages + step for pages in (1, 2, 3) for step in (-1, 0, 1)} | {query, query + 1}
    if window is not None:
        borders |= {window + step for step in (-1, 0, 1, 2, page_size, page_size + 1, query, query + 1)}
        borders.add(2 * window + 1)
    return borders
