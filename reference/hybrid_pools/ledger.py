"""Who has which pages: an account of both pools without storage, in which pages have names instead of places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from npudiff.reference.hybrid_pools.steps import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    Preempt,
    Readmit,
    Share,
    Step,
    names,
    new_tokens,
    request_name,
)


@dataclass(frozen=True)
class PoolSizes:
    """Sizes of a pair of pools, as in ``HybridPoolsInputs``; pages are those that requests can have."""

    page_size: int
    full_pages: int
    sliding_pages: int
    window: int
    requests: int
    prefix_sharing: bool


class PageLedger:
    """The account of a pair of pools.

    A page is a page of the full pool and, until it is evicted, one of the sliding pool. Its name is a number that is
    never used again.

    Parameters
    ----------
    sizes : PoolSizes
        Sizes of the pools.

    Attributes
    ----------
    tables : dict
        Live request to the names of its pages, in the order of its tokens.
    lengths : dict
        Tokens of each live request.
    waiting : dict
        Tokens of each preempted request.
    holders : Counter
        How many live requests have a page.
    evicted : set
        Pages that are no longer in the sliding pool.
    """

    def __init__(self, sizes: PoolSizes) -> None:
        self.sizes = sizes
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.waiting: dict[int, int] = {}
        self.holders: Counter[int] = Counter()
        self.evicted: set[int] = set()
        self._names = 0

    @property
    def free_pages(self) -> int:
        """Pages of the full pool that nobody has."""
        return self.sizes.full_pages - len(self.holders)

    @property
    def free_sliding_pages(self) -> int:
        """Pages of the sliding pool that nobody has."""
        return self.sizes.sliding_pages - len(self.holders) + len(self.evicted)

    @property
    def room(self) -> int:
        """Pages that a step can get: as many as are free in both pools."""
        return min(self.free_pages, self.free_sliding_pages)

    def pages_needed(self, step: Step) -> int:
        """Return how many pages a step takes from each pool."""
        match step:
            case Allocate(_, tokens) | Share(_, _, _, tokens):
                return self._pages(tokens)
            case Readmit(request):
                return self._pages(self.waiting[request])
            case Extend(request, tokens):
                return self._pages(self.lengths[request] + tokens) - self._pages(self.lengths[request])
            case Decode(requests):
                return sum(self.lengths[request] % self.sizes.page_size == 0 for request in requests)
            case Fork(source, _):
                return int(self.lengths[source] % self.sizes.page_size > 0)
        return 0

    def fits(self, step: Step) -> bool:
        """Whether both pools have the pages that a step takes."""
        return self.pages_needed(step) <= self.room

    @property
    def kept_tokens(self) -> int:
        """Tokens that a request keeps in the sliding pool: a window or, with prefix sharing, whole pages of it."""
        size, window = self.sizes.page_size, self.sizes.window
        return self._pages(max(window, size)) * size if self.sizes.prefix_sharing else window

    def outside(self, request: int) -> list[int]:
        """Return the pages of a request that are left of what it keeps, and still in the sliding pool."""
        left = max(0, self.lengths[request] - self.kept_tokens) // self.sizes.page_size
        return [page for page in self.tables[request][:left] if page not in self.evicted]

    def leaving(self, request: int) -> list[int]:
        """Return the pages of a request that an eviction gives up: those outside that only it has."""
        return [page for page in self.outside(request) if self.holders[page] == 1]

    def can_share(self, source: int, pages: int) -> bool:
        """Whether a request can begin with so many pages of another: its first own token sees no evicted one."""
        size = self.sizes.page_size
        first_seen = max(0, pages * size - self.sizes.window + 1)
        inside = self.tables[source][first_seen // size : pages]
        return 0 < pages <= self.lengths[source] // size and self.evicted.isdisjoint(inside)

    def reason_against(self, step: Step) -> str | None:
        """Return why a step makes no sense now, or None; that there are too few pages is no reason."""
        match step:
            case Allocate(request, _):
                return self._no_newcomer(request) or self._no_tokens(step)
            case Extend(request, _):
                return self._not_live((request,)) or self._no_tokens(step)
            case Decode(requests) | Evict(requests):
                return self._not_live(requests)
            case Free(request) | Preempt(request):
                return self._not_live((request,))
            case Readmit(request):
                waits = None if request in self.waiting else f"{request_name(request)} was not preempted"
                return waits or self._no_place()
        return self._no_sharing(step)

    def take(self, step: Step) -> bool:
        """Take a step; False, and nothing is changed, if there are too few pages."""
        if not self.fits(step):
            return False
        match step:
            case Allocate(request, tokens):
                self._admit(request, [], tokens)
            case Readmit(request):
                self._admit(request, [], self.waiting.pop(request))
            case Share(source, request, pages, tokens):
                self._admit(request, self.tables[source][:pages], tokens)
            case Fork(source, request):
                whole, rest = divmod(self.lengths[source], self.sizes.page_size)
                self._admit(request, self.tables[source][:whole], rest)
            case Extend() | Decode():
                for request, tokens in new_tokens(step).items():
                    self._grow(request, tokens)
            case Evict(requests):
                for request in requests:
                    self.evicted.update(self.leaving(request))
            case Preempt(request):
                self.waiting[request] = self.lengths[request]
                self._release(request)
            case Free(request):
                self._release(request)
        return True

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.sizes.page_size)

    def _admit(self, request: int, pages: list[int], tokens: int) -> None:
        self.tables[request] = list(pages)
        self.lengths[request] = len(pages) * self.sizes.page_size
        self.holders.update(pages)
        self._grow(request, tokens)

    def _grow(self, request: int, tokens: int) -> None:
        self.lengths[request] += tokens
        table = self.tables[request]
        while len(table) < self._pages(self.lengths[request]):
            self._names += 1
            table.append(self._names)
            self.holders[self._names] = 1

    def _release(self, request: int) -> None:
        del self.lengths[request]
        for page in self.tables.pop(request):
            self.holders[page] -= 1
            if not self.holders[page]:
                del self.holders[page]
                self.evicted.discard(page)

    def _not_live(self, requests: Iterable[int]) -> str | None:
        requests = tuple(requests)
        gone = tuple(request for request in requests if request not in self.tables)
        if gone:
            return f"not live: {names(gone)}"
        return None if requests and len(set(requests)) == len(requests) else "no request, or one twice"

    def _no_newcomer(self, request: int) -> str | None:
        if request < 0 or request in self.tables or request in self.waiting:
            return f"request {request} is there already, or is no request"
        return self._no_place()

    def _no_place(self) -> str | None:
        full = len(self.tables) >= self.sizes.requests
        return f"{len(self.tables)} requests are live already" if full else None

    def _no_sharing(self, step: Share | Fork) -> str | None:
        if not self.sizes.prefix_sharing:
            return "prefixes are not shared"
        reason = self._not_live((step.source,)) or self._no_newcomer(step.request)
        if reason is not None or isinstance(step, Fork):
            return reason
        if not self.can_share(step.source, step.pages):
            return f"{request_name(step.source)} has no {step.pages} whole pages whose window is there"
        return self._no_tokens(step)

    def _no_tokens(self, step: Allocate | Extend | Share) -> str | None:
        return None if step.tokens > 0 else f"{step.kind} needs at least one token, got {step.tokens}"
