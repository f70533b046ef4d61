"""What can be done next with a pair of pools: the steps of each kind, at the borders of pages and windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from npudiff.reference.hybrid_pools import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    PageLedger,
    Preempt,
    Readmit,
    Share,
    Step,
)

Steps = Sequence[Step]


def _admissions(ledger: PageLedger) -> Steps:
    """Newcomers, of which many find their prefix there already."""
    return [*_allocations(ledger), *_shares(ledger) * 3, *_forks(ledger) * 3]


def _allocations(ledger: PageLedger) -> Steps:
    if len(ledger.tables) >= ledger.sizes.requests:
        return []
    return [Allocate(_newcomer(ledger), tokens) for tokens in _lengths(ledger, 0)]


def _extensions(ledger: PageLedger) -> Steps:
    """The next chunk of a request."""
    steps = [Extend(request, count) for request, length in ledger.lengths.items() for count in _lengths(ledger, length)]
    return [*steps, *_company(ledger)]


def _company(ledger: PageLedger) -> Steps:
    """Newcomers where there is one request: alone, none meets another."""
    return _admissions(ledger) if len(ledger.tables) == 1 else []


def _outgrowths(ledger: PageLedger) -> Steps:
    """Extensions after which the oldest page that is left of a request lies outside its window, or nearly."""
    sizes, found = ledger.sizes, []
    for request, table in ledger.tables.items():
        oldest = next((index for index, page in enumerate(table) if page not in ledger.evicted), len(table))
        for kept in {sizes.window, ledger.kept_tokens}:
            total = (oldest + 1) * sizes.page_size + kept
            found += [Extend(request, total - less - ledger.lengths[request]) for less in (0, 1)]
    return [step for step in found if step.tokens > 0 and ledger.fits(step)]


def _decodes(ledger: PageLedger) -> Steps:
    return [*[Decode((request,)) for request in ledger.tables], *_company(ledger)]


def _batch_decodes(ledger: PageLedger) -> Steps:
    return [Decode(tuple(ledger.tables))] if len(ledger.tables) > 1 else _decodes(ledger)


def _evictions(ledger: PageLedger) -> Steps:
    """Mostly of requests that have pages outside their window; where none has, growing up to there as well."""
    steps = [Evict((request,)) for request in ledger.tables]
    useful = [step for step in steps if ledger.outside(*step.requests)]
    return [*steps, *(useful * 3 if useful else _outgrowths(ledger))]


def _batch_evictions(ledger: PageLedger) -> Steps:
    if len(ledger.tables) < 2:
        return _evictions(ledger)
    useful = any(ledger.outside(request) for request in ledger.tables)
    return [Evict(tuple(ledger.tables)), *([] if useful else _outgrowths(ledger))]


def _frees(ledger: PageLedger) -> Steps:
    return [Free(request) for request in ledger.tables] if _can_spare_one(ledger) else []


def _preemptions(ledger: PageLedger) -> Steps:
    return [Preempt(request) for request in ledger.tables] if _can_spare_one(ledger) else []


def _can_spare_one(ledger: PageLedger) -> bool:
    """Whether somebody stays when a request goes, or must go: alone, no request meets another."""
    return len(ledger.tables) >= min(2, ledger.sizes.requests) or not ledger.room


def _readmissions(ledger: PageLedger) -> Steps:
    return [Readmit(request) for request in ledger.waiting if ledger.reason_against(Readmit(request)) is None]


def _shares(ledger: PageLedger) -> list[Step]:
    """New requests that share a few pages, or all whole ones."""
    request, size = _newcomer(ledger), ledger.sizes.page_size
    steps: list[Step] = [
        Share(source, request, pages, tokens)
        for source, length in ledger.lengths.items()
        for pages in (1, length // size - 1, length // size)
        for tokens in (1, size - 1, size, size + 1, ledger.sizes.window)
    ]
    return [step for step in steps if ledger.reason_against(step) is None]


def _forks(ledger: PageLedger) -> list[Step]:
    steps: list[Step] = [Fork(source, _newcomer(ledger)) for source in ledger.tables]
    return [step for step in steps if ledger.reason_against(step) is None]


CHOICES: Mapping[str, Callable[[PageLedger], Steps]] = {
    "allocate": _admissions,
    "decode": _decodes,
    "decode_all": _batch_decodes,
    "evict": _evictions,
    "evict_all": _batch_evictions,
    "extend": _extensions,
    "fork": _forks,
    "free": _frees,
    "outgrow": _outgrowths,
    "preempt": _preemptions,
    "readmit": _readmissions,
    "share": _shares,
}
"""Rule of the machine to all steps that it may take now; none where none makes sense."""


def _newcomer(ledger: PageLedger) -> int:
    """The smallest number that no request has."""
    return next(number for number in range(len(ledger.tables) + len(ledger.waiting) + 1)
                if number not in ledger.tables and number not in ledger.waiting)  # fmt: skip


def _lengths(ledger: PageLedger, before: int) -> Sequence[int]:
    """How many tokens a request of ``before`` tokens gets: few, or up to one away from the border of a page or window.

    Mostly up to half of what there is room for, so that requests have company; now and then one page too many.
    """
    size, window = ledger.sizes.page_size, ledger.sizes.window
    borders = {base + step for base in (size, 2 * size, 3 * size, window, window + size) for step in (-1, 0, 1)}
    rest = -before % size
    counts = sorted({1, 2, 3, rest - 1, rest, rest + 1, *borders, *(border - before for border in borders)})
    most = rest + ledger.room * size
    fitting = [count for count in counts if 0 < count <= most]
    modest = [count for count in fitting if count <= max(rest, size + 1, most // 2)]
    return [*fitting, *modest, *modest, most + 1]
