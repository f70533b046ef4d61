"""Attention within chunks: its cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, choice, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, Numbers, allows
from npudiff.properties._shared import empty_parts, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.illegal import illegal_batch
from npudiff.properties._shared.slots import page_names, page_order_axis
from npudiff.properties.sliding_attention.case import SCALES
from npudiff.properties.sliding_attention.strategy import MOST_HEADS
from npudiff.reference.chunked_attention import ChunkedAttentionInputs, chunked_attention
from npudiff.reference.paged_kv import PagedKV
from npudiff.text import listed

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

RECIPES = ("gaussian", "needle")
"""gaussian: independent values. needle: the first key of each chunk, and the last one before it, take about half of the
weight of the queries that see them."""

POISON = 4096.0
"""Values of the pool that nobody may see: finite, exact in 16 bits, and far above what any right output holds."""

SHORT_SHARE = 6
"""In one of so many cases no request fills a chunk."""

MOST_OF_HEADS = 2**10
"""Elements of a key of all heads, where head dims are others than usual."""

ANY_CHUNK = (*range(2, 128), *range(130, 1024, 9))
"""Chunks of any size: what divides a position by them may round, and does so for some of them only; and long ones, in
which kernels have several tiles of keys before the border."""

LATER = 2**12
"""Positions to which a request may go on, in chunks that nobody sees any more: each costs a column of a table."""

MOST_SCORES = 2**17
"""New tokens of a request times its tokens or its chunk, where there is a choice."""

MOST_SCORES_OF_HEADS = 2**20
"""The same of all requests and query heads up to which a case may have more heads."""

_LENGTHS = range(2**16 + 1)
_SIZES = range(1, 2**12 + 1)


@dataclass(frozen=True)
class Request:
    """New tokens and total tokens of one request."""

    query: int
    kv: int


def _draw_requests(choose: Chooser, box: Box, case: ChunkedAttentionCase) -> tuple[Request, ...]:
    requests = choose.draw_list(
        box,
        "batch",
        (1, 2, 3),
        lambda: _draw_request(choose, box, case),
        lambda first, other: replace(other, query=first.query, kv=max(first.query, other.kv)),
    )
    idle = empty_parts.which(choose.pick(empty_parts.SELDOM), len(requests))
    if not allows(box.get("query_length", _LENGTHS), 0):
        return requests
    return tuple(replace(one, query=0) if place in idle else one for place, one in enumerate(requests))


def _draw_request(choose: Chooser, box: Box, case: ChunkedAttentionCase) -> Request:
    """Lengths at the borders of chunks, early ones and a later one, and new tokens that begin and end within them.

    Some begin at the last border, or cross it by a few rows, wherever they end.
    """
    chunk = case.chunk
    counts = (1, 2, 3, 4 if choose.far == "batch" else max(4, LATER // chunk))
    borders = [count * chunk + step for count in counts for step in (-1, 0, 1)]
    if case.place_of_short == SHORT_SHARE - 1:
        borders = [chunk - 1, chunk - case.page_size // 2, chunk // 2 + 1]
    totals = [one for one in (1, 2, 5, *borders, chunk // 2 + chunk, 70) if 0 < one <= max(borders)]
    queries = within((1, 1, 2, 7, chunk, chunk + 1, 2 * chunk + 1), box.get("query_length"))[:4096]
    totals = [total for total in within(totals, box.get("kv_length"))[:4096] if total >= min(queries)]
    totals = totals or [total for total in (min(queries),) if allows(box.get("kv_length", _LENGTHS), total)]
    assume(totals)
    total = choose.pick(totals)
    behind = (total - 1) % chunk + 1
    near = [behind + step for step in (0, 1, 5) if allows(box.get("query_length", _LENGTHS), behind + step)]
    fitting = [new for new in (*queries, *near, *near) if new <= total]
    most = MOST_SCORES // (32 if choose.far else 1)
    affordable = [new for new in fitting if new * min(total, chunk) <= most]
    return Request(choose.pick(affordable or [min(fitting)]), total)


def _chunks(case: ChunkedAttentionCase) -> tuple[int, ...]:
    """Whole pages and their neighbours, very short ones, and in half of all cases any."""
    size = case.page_size
    return (*(size, 2 * size, 2 * size, 4 * size, 3, 17, size + 1, 1, 3 * size) * 24, *ANY_CHUNK)


def _affords_heads(case: ChunkedAttentionCase, heads: int) -> bool:
    """Whether so many query heads are worth what they cost."""
    scores = sum(one.query * min(one.kv, case.chunk) for one in case.requests)
    return heads <= MOST_HEADS and heads * scores <= MOST_SCORES_OF_HEADS


@dataclass(frozen=True)
class ChunkedAttentionCase(Case):
    """One attention call, as sizes and a recipe."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request"),
    )
    chunk: int = axis(
        "positions of a chunk", range(1, 2**20), 16, drawn=_chunks, shown="chunk {}", always=True,
        fits=lambda case, chunk: allows(case.box.get("whole_pages", (False, True)), chunk % case.page_size == 0),
    )  # fmt: skip
    page_size: int = axis("tokens per page", _SIZES, 16, drawn=(16, 16, 32, 48, 64, 128), shown="page {}", always=True)
    kv_heads: int = axis(
        "KV heads", _SIZES, 1, drawn=(1, 2, 3), affordable=_affords_heads,
        shown=lambda case: f"heads {case.kv_heads * case.group}:{case.kv_heads}",
    )  # fmt: skip
    group: int = axis(
        "query heads per KV head", _SIZES, 1, drawn=(1, 2, 5, 1, 2, 5, 8, 20),
        affordable=lambda case, group: _affords_heads(case, group * case.kv_heads) and group <= 64, shown="",
    )  # fmt: skip
    head_dim: int = axis(
        "elements of a head", range(1, 2**10 + 1), 64, drawn=(64, 128, 64, 128, 64, 128, 96, 80, 192, 72),
        affordable=lambda case, dim: case.far != "head_dim" or dim * case.kv_heads <= MOST_OF_HEADS,
        shown="dim {}", always=True,
    )  # fmt: skip
    dtype: str = axis("dtype of queries, keys and values", tuple(DTYPES), "bfloat16", always=True)
    recipe: str = axis("how keys are made", RECIPES, "gaussian", region="{}")
    padded_rows: int = axis("query rows beyond the last request", range(2**12), 0, drawn=(0, 0, 1, 3),
                            shown="{} padded rows")  # fmt: skip
    scale: float = axis(
        "factor of the scores, in units of 1/sqrt(head dim)", Numbers(1e-3, 1e3), 1.0, drawn=SCALES, shown="scale x{:g}"
    )
    rows: str = rows.axis()
    seed: int = seed()
    page_order: str = page_order_axis()

    place_of_short = choice(range(SHORT_SHARE))
    drawn_first = ("place_of_short", "page_size", "chunk", "requests")
    shown_first = ("requests",)
    outliers = ("batch", "kv_heads", "group", "head_dim")

    @derived("number of requests", range(1, 257))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("new tokens of a request; 1 is a decode", _LENGTHS, each=True)
    def query_length(self) -> Collection[int]:
        """New tokens of the requests."""
        return {request.query for request in self.requests}

    @derived("tokens of a request, the new ones included", _LENGTHS, each=True)
    def kv_length(self) -> Collection[int]:
        """Tokens of the requests."""
        return {request.kv for request in self.requests}

    @derived("whether chunks are whole pages", (False, True))
    def whole_pages(self) -> bool:
        """Whether chunks are whole pages."""
        return self.chunk % self.page_size == 0

    @property
    def pages(self) -> int:
        """Pages of the pool: the dummy page 0, one that is nobody's, and those of which some token is seen."""
        size = self.page_size
        return 2 + sum(-(-one.kv // size) - seen_from(self, one) // size for one in self.requests)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if any(request.query > request.kv for request in self.requests):
            yield "a request has no more new tokens than tokens"
        queries = (sum(request.query for request in self.requests) + self.padded_rows) * self.group
        if max(self.pages * self.page_size, queries) * self.kv_heads * self.head_dim > 2**24:
            yield f"the inputs would have more than {2**24} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        spans = [((one.kv - one.query) // self.chunk, (one.kv - 1) // self.chunk) for one in self.requests]
        return {
            "query length 1": 1 in self.query_length,
            "earlier chunks": any(first > 0 for first, _ in spans),
            "new tokens in several chunks": any(first < last for first, last in spans),
            "request without rows": 0 in self.query_length,
            "whole last chunk": any(one.kv % self.chunk == 0 for one in self.requests),
            "shorter than a chunk": max(self.kv_length) < self.chunk,
        }


def seen_from(case: ChunkedAttentionCase, request: Request) -> int:
    """Return the first position that some new token of a request sees; all of them if there is none."""
    return (request.kv - request.query) // case.chunk * case.chunk if request.query else request.kv


def build_inputs(case: ChunkedAttentionCase) -> ChunkedAttentionInputs:
    """Build the inputs of a case: poison wherever nobody sees anything, pages of earlier chunks included."""
    size, names = case.page_size, iter(page_names("pages", case.seed, case.pages, case.page_order))
    width = max(-(-request.kv // size) for request in case.requests) + 1
    table = torch.zeros(len(case.requests), width, dtype=torch.int32)
    pool = torch.zeros(case.pages, size, case.kv_heads, case.head_dim, dtype=DTYPES[case.dtype])
    key, value = pool, torch.full_like(pool, POISON)
    queries = (sum(request.query for request in case.requests) + case.padded_rows, case.kv_heads * case.group)
    query = case.normal("query", *queries, case.head_dim) + _direction(case)
    if case.recipe == "needle":  # so that scores, and what needles weigh, are the same for all scales
        query = query / case.scale
    for row, request in enumerate(case.requests):
        first = seen_from(case, request)
        own = [next(names) if (column + 1) * size > first else 0 for column in range(-(-request.kv // size))]
        table[row, : len(own)] = torch.tensor(own, dtype=torch.int32)
        tokens = torch.arange(first, request.kv)
        pages = table[row, tokens // size].long()
        key[pages, tokens % size] = _keys(case, row, tokens).to(key.dtype)
        made = Stream(case.seed, f"value {row}").normal((len(tokens), case.kv_heads, case.head_dim), torch.float32)
        value[pages, tokens % size] = made.to(value.dtype)
    return ChunkedAttentionInputs(
        query=rows.with_row_stride(query.to(DTYPES[case.dtype]), case.rows),
        kv=PagedKV(key, value, table),
        query_lengths=tuple(request.query for request in case.requests),
        kv_lengths=tuple(request.kv for request in case.requests),
        chunk=case.chunk,
        scale=case.scale / math.sqrt(case.head_dim),
    )


def _direction(case: ChunkedAttentionCase) -> torch.Tensor:
    """What all queries have in common, so that a key can be made that all of them see."""
    if case.recipe == "gaussian":
        return torch.zeros(case.head_dim)
    return torch.where(torch.arange(case.head_dim) % 2 == 0, 1.0, -1.0)


def _keys(case: ChunkedAttentionCase, row: int, tokens: torch.Tensor) -> torch.Tensor:
    """Keys of some tokens, ``[tokens, kv_heads, head_dim]``: at borders of chunks along what queries have in common."""
    made = Stream(case.seed, f"key {row}").normal((len(tokens), case.kv_heads, case.head_dim), torch.float32)
    if case.recipe == "gaussian":
        return made
    at_border = (tokens % case.chunk == 0) | (tokens % case.chunk == case.chunk - 1)
    visible = max(2, min(case.chunk, max(case.kv_length)))
    needle = _direction(case) * math.log(visible) / math.sqrt(case.head_dim)
    return torch.where(at_border[:, None, None], needle, made)


def coordinates(inputs: ChunkedAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output; those of padded rows are -1."""
    del output  # there is one
    lengths = torch.tensor(inputs.query_lengths)
    padded = torch.full((len(inputs.query) - int(lengths.sum()),), -1)
    position = torch.cat(
        [torch.arange(kv - new, kv) for new, kv in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)] + [padded]
    )
    request = torch.cat([torch.repeat_interleave(torch.arange(len(lengths)), lengths), padded])
    chunk = torch.where(position < 0, -1, position // inputs.chunk)
    by_row = {"request": request, "kv position": position, "chunk": chunk}
    return {
        **{name: numbers[:, None, None] for name, numbers in by_row.items()},
        "head": torch.arange(inputs.query.shape[1])[None, :, None],
        "element": torch.arange(inputs.query.shape[2])[None, None, :],
    }


def _other_order(inputs: ChunkedAttentionInputs, case: ChunkedAttentionCase) -> Changed[ChunkedAttentionInputs]:
    """Requests in another order."""
    order = Stream(case.seed, "order").permutation(case.batch)
    ends = torch.tensor([0, *inputs.query_lengths]).cumsum(dim=0).tolist()
    places = torch.cat([torch.arange(ends[one], ends[one + 1]) for one in order])
    changed = replace(
        inputs,
        query=inputs.query[torch.cat([places, torch.arange(ends[-1], len(inputs.query))])],
        kv=replace(inputs.kv, block_table=inputs.kv.block_table[order]),
        query_lengths=tuple(inputs.query_lengths[one] for one in order),
        kv_lengths=tuple(inputs.kv_lengths[one] for one in order),
    )
    return Changed(
        changed,
        lambda outputs: {"output": outputs["output"][places]},
        lambda outputs: {"output": outputs["output"][: len(places)]},
    )


def _a_long_chunk_is_causal(subject: Subject, case: ChunkedAttentionCase) -> Comparison:
    """Two chunks that are longer than all requests give the same bits: neither has a border."""
    longest = max(case.kv_length)
    chunks = [-(-(longest + more) // case.page_size) * case.page_size for more in (1, 1 + 3 * case.page_size)]
    cases = [replace(case, chunk=chunk) for chunk in chunks]
    for other in cases:
        subject.require(other, "a chunk that is longer than all requests")
    inputs = [build_inputs(replace(other, recipe="gaussian")) for other in cases]
    first, second = (subject.run(given) for given in inputs)
    return same_bits(first, second, "chunks of two lengths beyond all requests")


def _earlier_chunks_do_not_matter(
    inputs: ChunkedAttentionInputs, case: ChunkedAttentionCase
) -> Changed[ChunkedAttentionInputs]:
    """A chunk more in front of every request: positions move by a chunk, and nobody sees what stands there."""
    pages = case.chunk // case.page_size
    table = torch.nn.functional.pad(inputs.kv.block_table, (pages, 0))
    longer = tuple(replace(request, kv=request.kv + case.chunk) for request in case.requests)
    return Changed(
        replace(inputs, kv=replace(inputs.kv, block_table=table), kv_lengths=tuple(one.kv for one in longer)),
        case=replace(case, requests=longer),
    )


component = Component(
    name="chunked_attention",
    summary="attention over a paged KV cache in which a token sees its own chunk of positions alone, as in Llama 4",
    case_type=ChunkedAttentionCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=chunked_attention,
    illegal=illegal_batch("kv", lambda inputs: inputs.kv.page_size),
    coordinates=coordinates,
    highlighted_region="new tokens in several chunks",
    relations=(
        relation("batch_order_does_not_matter", "the order of the batch does not matter", _other_order,
                 within={"batch": range(2, 257)}),
        Property("a_long_chunk_is_causal", "chunks that are longer than all requests are alike",
                 _a_long_chunk_is_causal, within={"whole_pages": (True,)}),
        relation("earlier_chunks_do_not_matter", "what stands in earlier chunks, and how much, does not matter",
                 _earlier_chunks_do_not_matter, bits=True, within={"whole_pages": (True,)}),
    ),
    baselines=BASELINES["chunked_attention"],
)  # fmt: skip
