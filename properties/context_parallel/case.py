"""Cases of attention over several ranks: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from npudiff.draw.cases import Case, Chooser, assume, axis, derived, part, seed, within
from npudiff.model.constraints import Box
from npudiff.properties._shared import rows
from npudiff.properties._shared.slots import page_order_axis
from npudiff.reference.context_parallel import STAGES
from npudiff.text import counted, listed

RECIPES = ("gaussian", "needle", "hot", "cold", "uneven")
"""gaussian: independent values. needle: keys at borders of stretches and chunks take about half of the weight each.
hot, cold: every score is near 100 or -100, beyond what a float32 exponential holds. uneven: hot and cold stretches."""

_LENGTHS = range(2**16 + 1)

DRAFTS = (1, 1, 1, 2, 3, 4, 8)
"""New tokens of a request that is decoded; more than one are drafts."""

MOST_QUERY_ROWS = 2**12
"""Query rows of all heads up to which a case has more than it must."""

MOST_HEADS = 64
"""Query heads of all ranks: operators take no more for a KV head."""


@dataclass(frozen=True)
class Request:
    """New tokens and total tokens of one request."""

    query: int
    kv: int


def _wants(box: Box, axis: str, value: bool) -> bool:
    """Whether cases are wanted that have a value, and no others."""
    return (not value) not in box.get(axis, (False, True))


def _draw_requests(choose: Chooser, box: Box, case: ContextParallelCase) -> tuple[Request, ...]:
    drawer = _draw_decode if case.sharded else _draw_prefill
    drawn = choose.draw_list(box, "batch", (1, 2, 3), lambda: drawer(choose, box, case), _as_many_new)
    if _wants(box, "ragged", value=False):
        drawn = tuple(_as_many_new(drawn[0], request) for request in drawn)
    if _wants(box, "prefix", value=False):
        drawn = tuple(Request(request.query, request.query) for request in drawn)
    few = not case.sharded and any(request.query < 2 * case.ranks for request in drawn)
    found = {
        "ragged": len({request.query for request in drawn}) > 1,
        "empty_chunks": few,
        "prefix": any(request.kv > request.query for request in drawn),
        "new_shard": any(map(case.reaches_new_shard, drawn)),
        "mixed_shards": case.mixes_shards(drawn),
    }
    assume(not any(_wants(box, axis, value=not value) for axis, value in found.items()))
    return drawn


def _as_many_new(first: Request, other: Request) -> Request:
    return replace(other, query=first.query, kv=other.kv - other.query + first.query)


def _draw_decode(choose: Chooser, box: Box, case: ContextParallelCase) -> Request:
    """A history that ends near the border of a stretch, of a round over all ranks, or of a page."""
    options = within(DRAFTS, box.get("query_length"))[:4096]
    several = [new for new in options if new > 1]
    new = choose.pick(several if several and _wants(box, "new_shard", value=True) else options)
    stretch, turn = case.interleave, case.interleave * case.ranks
    borders = (0, stretch, turn - stretch, turn, turn + stretch, 2 * turn, case.page_size * case.ranks)
    totals = [max(border, 0) + more for border in borders for more in (new, 1, 0, new + 1, new - 1, new + 40)]
    if _wants(box, "new_shard", value=True):
        totals = [total for total in totals if total >= new and case.reaches_new_shard(Request(new, total))]
        assume(totals)
    return _with_total(choose, box, new, totals)


def _draw_prefill(choose: Chooser, box: Box, case: ContextParallelCase) -> Request:
    """New tokens that make chunks of equal length, or nearly, or leave some empty; with a prefix or without."""
    chunks, size = 2 * case.ranks, case.page_size
    usual = (1, chunks - 1, chunks, chunks + 1, 2, 2 * chunks - 1, 3 * chunks + 1, 17, 65)
    options = within(usual, box.get("query_length"))[:4096]
    if _wants(box, "empty_chunks", value=False):
        options = [new for new in options if new >= chunks]
        assume(options)
    new = choose.pick(options)
    return _with_total(choose, box, new, [new + prefix for prefix in (0, 0, 1, size - 1, size, size + 1, 20)])


def _with_total(choose: Chooser, box: Box, new: int, totals: list[int]) -> Request:
    fitting = [total for total in within(totals, box.get("kv_length"))[:4096] if total >= new]
    assume(fitting)
    return Request(new, choose.pick(fitting))


def _leaves_heads(case: ContextParallelCase, ranks: int) -> bool:
    """Whether so many ranks may have as many heads each as are asked for, and something to be new to."""
    own = case.box.get("own_heads", (1,))
    if ranks == 1 and _wants(case.box, "new_shard", value=True):
        return False
    return not case.sharded or ranks * min(own) <= MOST_HEADS


def _affords_heads(case: ContextParallelCase, own: int) -> bool:
    heads = own * case.ranks if case.sharded else own
    return heads <= MOST_HEADS and heads * sum(request.query for request in case.requests) <= MOST_QUERY_ROWS


@dataclass(frozen=True)
class ContextParallelCase(Case):
    """One attention call of all ranks, as sizes and a recipe."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request"),
    )
    stage: str = axis(
        "decode: over shards of a history; prefill: new tokens in head and tail chunks", STAGES, "decode", always=True,
        fits=lambda case, stage: stage == "decode" or not _wants(case.box, "new_shard", value=True),
    )  # fmt: skip
    ranks: int = axis(
        "ranks", range(1, 17), 1, drawn=(1, 2, 2, 2, 2, 3, 3, 4, 8), fits=_leaves_heads,
        shown=lambda case: counted(case.ranks, "rank"), always=True, region="several ranks",
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", range(1, 2**12 + 1), 16, drawn=lambda case: (16, 32) if case.far else (16, 16, 32, 48, 128),
        shown="page {}", always=True,
    )  # fmt: skip
    interleave: int = axis(
        "tokens that follow each other on one rank; they divide a page", range(1, 2**12 + 1), 1,
        drawn=lambda case: (1, 2, 4, 8, 16, case.page_size),
        fits=lambda case, tokens: case.page_size % tokens == 0,
        applies=lambda case: case.sharded, shown="interleave {}", always=True,
    )  # fmt: skip
    own_heads: int = axis(
        "query heads of a rank", range(1, MOST_HEADS + 1), 1, drawn=(1, 2, 3, 4), affordable=_affords_heads,
        shown=lambda case: f"heads {case.heads}:{case.kv_heads}", always=True, region="several heads",
    )  # fmt: skip
    kv_heads: int = axis(
        "KV heads", range(1, MOST_HEADS + 1), 1, drawn=(1, 1, 2, 3),
        fits=lambda case, kv_heads: case.heads % kv_heads == 0, shown="",
    )  # fmt: skip
    head_dim: int = axis("elements of a head", range(8, 513, 8), 64, drawn=(64, 128), shown="dim {}", always=True)
    dtype: str = axis("dtype of queries, keys and values", ("bfloat16", "float16"), "bfloat16", always=True)
    padded: int = axis(
        "requests of length 0 behind the others, as graphs pad a batch", range(2**12), 0, drawn=(0, 0, 1, 2),
        applies=lambda case: case.sharded, shown="{} padded request(s)", region="padded requests",
    )  # fmt: skip
    recipe: str = axis("how queries and keys are made", RECIPES, "gaussian")
    rows: str = rows.axis()
    seed: int = seed()
    page_order: str = page_order_axis()

    drawn_first = ("stage", "ranks", "page_size", "interleave", "requests", "own_heads")
    shown_first = ("requests", "stage", "ranks")
    outliers = ("batch", "own_heads")

    @property
    def sharded(self) -> bool:
        """Whether the history is split."""
        return self.stage == "decode"

    @property
    def heads(self) -> int:
        """Query heads of all ranks together."""
        return self.own_heads * self.ranks if self.sharded else self.own_heads

    @property
    def batch_lengths(self) -> list[Request]:
        """All requests, those that pad the batch included."""
        return [*self.requests, *[Request(self.requests[-1].query, 0)] * self.padded]

    @derived("number of requests", range(1, 4097))
    def batch(self) -> int:
        """Number of requests, those that pad the batch not among them."""
        return len(self.requests)

    @derived("new tokens of a request; 1 is a decode without drafts", _LENGTHS, each=True)
    def query_length(self) -> Collection[int]:
        """New tokens of the requests."""
        return {request.query for request in self.requests}

    @derived("tokens of a request, the new ones included", _LENGTHS, each=True)
    def kv_length(self) -> Collection[int]:
        """Tokens of the requests."""
        return {request.kv for request in self.requests}

    @derived("whether requests differ in their number of new tokens", (False, True))
    def ragged(self) -> bool:
        """Whether requests differ in their number of new tokens."""
        return len(self.query_length) > 1

    @derived("whether a request has tokens before its new ones", (False, True))
    def prefix(self) -> bool:
        """Whether a request has tokens before its new ones."""
        return any(request.kv > request.query for request in self.requests)

    @derived("whether a request of a prefill has fewer new tokens than there are chunks", (False, True))
    def empty_chunks(self) -> bool:
        """Whether some chunks are empty."""
        return not self.sharded and any(request.query < 2 * self.ranks for request in self.requests)

    @derived("whether drafts reach a rank on which no token lies that the first of them sees", (False, True))
    def new_shard(self) -> bool:
        """Whether a row of some request sees nothing on a rank on which a later row sees a key."""
        return any(map(self.reaches_new_shard, self.requests))

    @derived("whether a rank has histories of some requests, and of others nothing", (False, True))
    def mixed_shards(self) -> bool:
        """Whether a rank has tokens of one request's history, and none of another's that has one."""
        return self.mixes_shards(self.requests)

    def tokens_of(self, rank: int, length: int) -> int:
        """How many of the first tokens of a request lie on a rank."""
        if not self.sharded:
            return length
        rounds, left = divmod(length, self.interleave * self.ranks)
        return rounds * self.interleave + min(max(left - rank * self.interleave, 0), self.interleave)

    @property
    def pages(self) -> int:
        """Pages of a pool: the dummy page 0, one that is nobody's, and those of all requests on the fullest rank."""
        return 2 + sum(-(-self.tokens_of(0, request.kv) // self.page_size) for request in self.requests)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if any(request.query < 1 or request.query > request.kv for request in self.requests):
            yield "a request has new tokens, and no more of them than tokens"
        if self.page_size % self.interleave:
            yield f"stretches of {self.interleave} tokens do not divide pages of {self.page_size}"
        if self.heads > MOST_HEADS:
            yield f"there would be more than {MOST_HEADS} query heads"
        if self.heads % self.kv_heads:
            yield f"{self.heads} query heads are not shared by {self.kv_heads} KV heads"
        stored = self.ranks * self.pages * self.page_size * self.kv_heads
        rows_of_queries = sum(request.query for request in self.batch_lengths) * self.heads * self.ranks
        if max(stored, rows_of_queries) * self.head_dim > 2**24:
            yield f"the inputs would have more than {2**24} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        several = self.ranks > 1
        drafts = self.sharded and several and max(self.query_length) > 1
        return {
            "empty shard": self.sharded and any(not self.tokens_of(self.ranks - 1, one.kv) for one in self.requests),
            "drafts": drafts,
            "shards of some requests": self.mixed_shards,
            "drafts that reach a new rank": self.new_shard,
            "stretch begun": self.sharded and any(one.kv % self.interleave for one in self.requests),
            "uneven chunks": not self.sharded and any(one.query % (2 * self.ranks) for one in self.requests),
            "empty chunks": self.empty_chunks,
            "prefill behind a prefix": not self.sharded and self.prefix,
            "ragged": self.ragged,
        }

    def reaches_new_shard(self, request: Request) -> bool:
        """Whether a row of a request sees nothing on a rank on which a later row sees a key."""
        first = request.kv - request.query + 1
        ranks = range(self.ranks if self.sharded else 0)
        return any(self.tokens_of(rank, request.kv) and not self.tokens_of(rank, first) for rank in ranks)

    def mixes_shards(self, requests: Sequence[Request]) -> bool:
        """Whether a rank has tokens of one request's history, and none of another's that has one."""
        histories = [request.kv - request.query for request in requests if request.kv > request.query]
        shards = [[self.tokens_of(rank, old) for old in histories] for rank in range(self.ranks)]
        return any(any(shard) and not all(shard) for shard in shards)
