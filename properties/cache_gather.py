"""Reading tokens out of a paged cache: its cases, data, and what must hold."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.judge.pattern import NOWHERE
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, allows
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import empty_parts
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.far_pool import behind, far_pool_axis, pages_before
from npudiff.properties._shared.head_dims import (
    HEAD_DIMS,
    into_head_dims,
    join_head_dims,
    split_head_dims,
    unfilled_strips,
)
from npudiff.properties._shared.illegal import illegal_pages
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties._shared.moved_data import DTYPES as TORCH_DTYPES
from npudiff.properties._shared.moved_data import random_bits
from npudiff.properties._shared.slots import page_order_axis
from npudiff.reference.cache_gather import CacheGatherInputs, cache_gather
from npudiff.reference.cache_layout import LAYOUTS, CacheLayout, strip_width
from npudiff.text import listed

DTYPES = ("bfloat16", "float16", "int8")
DIMS = ("32", "64", "128", "192/128", "512/64", "80", "96", "256", "576", "512", "72")
TINY_DIMS = ("16", "8")
"""Where a request is read of more than a thousand tokens."""
STARTS = ("none", "page", "token")
UNUSED = ("page 0", "-1", "any page")

_SIZES = range(1, 2**16 + 1)
_COUNTS = range(2**16)

POOL_ELEMENTS = 2**17
"""Elements of the caches to which pages and requests are kept where a page alone does not have more."""

LONG_POOL_ELEMENTS = 2**21
"""The same for the few cases with long tables."""

MOST_ELEMENTS = 2**24

PLAIN = "PA_BSND"


@dataclass(frozen=True)
class Stretch:
    """The tokens of one request that are read."""

    length: int
    start: int = 0


def _lengths(page_size: int, most_pages: int) -> Sequence[Sequence[int]]:
    """Tokens that are read, by what lies in the last page: few, half of it, all but one, all; or none at all.

    That and how many pages come before are two choices, so that a fault at the border of some page shrinks to the
    first one, and one choice means the same of every page size, so that this shrinks as well. Large pages are few.
    """
    before = [pages for pages in (0, 1, 2, 3, 5) if pages <= max(1, most_pages)]
    parts = (1, 2, page_size // 2 or 1, page_size - 1 or 1, page_size)
    return [*([pages * page_size + part for pages in before] for part in parts), [0]]


def _long_lengths(page_size: int, most_pages: int) -> Sequence[Sequence[int]]:
    """Tokens of requests with tables of more than 64 and more than 128 columns."""
    return [[pages * page_size + 1, pages * page_size + page_size] for pages in (70, 130) if pages <= most_pages // 2]


def _starts(page_size: int, starts: str) -> Sequence[int]:
    """First tokens that are read; page 0 comes first."""
    pages = [0, page_size, 2 * page_size]
    return {"none": [0], "page": pages, "token": [*pages, 1, page_size - 1, page_size + 1]}[starts]


def _fills_strips(case: CacheGatherCase, dims: str) -> bool:
    if case.layout != "PA_NZ":
        return True
    width = strip_width(TORCH_DTYPES[case.dtype])
    return all(case.kv_heads * dim % width == 0 for dim in split_head_dims(dims))


def _dims(case: CacheGatherCase) -> Sequence[str]:
    if not case.huge:
        return DIMS
    return ("32",) if case.layout == "PA_NZ" and case.dtype == "int8" else TINY_DIMS


def _draw_length(choose: Chooser, box: Box, case: CacheGatherCase, lengths: Sequence[int]) -> int:
    options = choose.options(box, "length", lengths)
    if choose.huge:
        width = case.kv_heads * max(case.head_dim, case.value_head_dim)
        options = [length for length in options if case.affords(length * width, 0)] or options[:1]
    return int(choose.pick(options))


def _draw_requests(choose: Chooser, box: Box, case: CacheGatherCase) -> tuple[Stretch, ...]:
    size = case.page_size
    most_pages = POOL_ELEMENTS // (size * case.kv_heads * (case.head_dim + case.value_head_dim))
    usual, offsets = _lengths(size, most_pages // 4), _starts(size, case.starts)
    lengths = usual
    if choose.pick(range(16)) == 15:
        lengths = [] if choose.far else _long_lengths(size, LONG_POOL_ELEMENTS // POOL_ELEMENTS * most_pages)
        lengths = lengths or usual
    requests = choose.draw_list(
        box,
        "batch",
        [1] if choose.huge else [1, 2, *(batch for batch in (3, 4) if batch <= most_pages // 2)],
        lambda: Stretch(_draw_length(choose, box, case, choose.pick(lengths)), choose.pick(offsets)),
        lambda first, other: replace(other, length=first.length),
    )
    if allows(box.get("length", (0,)), 0):
        empty = empty_parts.which(choose.pick(empty_parts.OFTEN), len(requests))
        requests = tuple(replace(one, length=0) if place in empty else one for place, one in enumerate(requests))
    return requests


def _requests_text(case: CacheGatherCase) -> str:
    requests = [f"{one.length}@{one.start}" if one.start else f"{one.length}" for one in case.requests]
    return f"tokens {listed(requests, 'request')}"


@dataclass(frozen=True)
class CacheGatherCase(Case):
    """Stretches of requests, read out of a paged cache; page 0 is a dummy."""

    requests: tuple[Stretch, ...] = part(draw=_draw_requests, shown=_requests_text)
    starts: str = axis(
        "where reading begins: at token 0, at the first token of some page, or anywhere", STARTS, "none",
        shown="starts {}",
    )  # fmt: skip
    spare_rows: int = axis(
        "rows of the packed outputs behind the last token", _COUNTS, 0, drawn=(0, 1, 5), shown="{} spare row(s)",
        region="rows to spare",
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", _SIZES, 16,
        drawn=lambda case: (1, 2, 16) if case.far else (1, 2, 16, 32, 48, 64, 128, 192, 256),
        shown="page {}", always=True,
    )  # fmt: skip
    kv_heads: int = axis("KV heads", _SIZES, 1, drawn=lambda case: (1,) if case.huge else (1, 2, 3, 8),
                         shown="heads {}", always=True)  # fmt: skip
    head_dim: int = part(64)
    value_head_dim: int = part(64)
    dtype: str = axis("dtype of the caches", DTYPES, "bfloat16", always=True)
    layout: str = axis("how the caches lie", LAYOUTS, "PA_BSND", always=True)
    shared_pages: int = axis(
        "first pages that all requests share, as after a prefix hit", _COUNTS, 0, drawn=(0, 1, 2),
        shown="{} shared page(s)",
    )  # fmt: skip
    unused: str = axis(
        "entries of the block table that name no page of a token that is read", UNUSED, "page 0",
        shown=lambda case: f"unused {case.unused}" * (case.unused != "page 0"),
        applies=lambda case: any(case.last_page(request) < case.width for request in case.requests),
    )  # fmt: skip
    spare_columns: int = axis(
        "columns of the block table beyond the longest request", _COUNTS, 0, drawn=(0, 1, 3),
        shown="{} spare column(s)",
    )  # fmt: skip
    seed: int = seed()
    page_order: str = page_order_axis()
    far_pool: bool = far_pool_axis()

    drawn_first = ("page_size", "kv_heads", "dtype", "layout", "head_dims", "starts", "requests")
    shown_first = (
        "requests", "starts", "spare_rows", "layout", "page_size", "kv_heads", "head_dims", "dtype", "shared_pages",
        "spare_columns", "unused",
    )  # fmt: skip
    outliers = ("kv_heads", "batch", "head_dims")
    huge_axes = ("length",)

    @derived("number of requests", range(1, 4097))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("tokens of a request that are read", range(2**20 + 1), each=True)
    def length(self) -> Collection[int]:
        """Tokens of the requests that are read."""
        return {request.length for request in self.requests}

    @derived(
        "head dim of keys, and of values if it differs: 128 or 192/128", HEAD_DIMS,
        drawn=_dims,
        fits=_fills_strips, into=into_head_dims, shown="dim {}",
    )  # fmt: skip
    def head_dims(self) -> str:
        """Head dim of keys, and of values if it differs."""
        return join_head_dims(self.head_dim, self.value_head_dim)

    @property
    def cells(self) -> int:
        """Elements of the larger cache, or of what is read from it."""
        widest = self.kv_heads * max(self.head_dim, self.value_head_dim)
        return widest * max(self.pages * self.page_size, self.rows)

    @property
    def first_page(self) -> int:
        """The dummy page, before which nothing is used: 0, but in a far pool."""
        return pages_before(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the caches."""
        return TORCH_DTYPES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens that are read, of all requests."""
        return sum(request.length for request in self.requests)

    @property
    def rows(self) -> int:
        """Rows of the packed outputs."""
        return self.tokens + self.spare_rows

    def last_page(self, request: Stretch) -> int:
        """Pages of a request up to its last token that is read."""
        return -(-(request.start + request.length) // self.page_size) if request.length else 0

    @property
    def width(self) -> int:
        """Columns of the block table."""
        return max(1, *(self.last_page(request) for request in self.requests)) + self.spare_columns

    @property
    def pages(self) -> int:
        """Pages of the pool: the dummy, those of the requests with shared ones counted once, and a spare one."""
        counts = [self.last_page(request) for request in self.requests]
        shared = min(self.shared_pages, max(counts))
        return 2 + shared + sum(max(0, count - shared) for count in counts)

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return self.cells <= MOST_ELEMENTS

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        step = {"none": 2**21, "page": self.page_size, "token": 1}[self.starts]
        for request in self.requests:
            if not 0 <= request.start <= 2**20:
                yield f"start must lie in 0..{2**20}, got {request}"
            if request.start % step:
                yield f"{request} does not start where starts {self.starts} says"
        if self.cells > 2**26:
            yield f"a cache would have more than {2**26} elements"
        if len(self.requests) * self.width > 2**26:
            yield f"the block table would have more than {2**26} entries"
        yield from unfilled_strips(*(layout_of(self, dim) for dim in (self.head_dim, self.value_head_dim)))

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        ends = [request.start + request.length for request in self.requests if request.length]
        return {
            "several requests": len(self.requests) > 1,
            "request of 0 tokens": any(not request.length for request in self.requests),
            "last page partial": any(end % self.page_size for end in ends),
            "last page full": any(end % self.page_size == 0 for end in ends),
            "several pages": any(self.last_page(request) > 1 for request in self.requests),
            "starts": any(request.start for request in self.requests),
            "NZ": self.layout == "PA_NZ",
            "V dim differs": self.head_dim != self.value_head_dim,
            "shared pages": self.shared_pages > 0 and len(self.requests) > 1,
        }


def layout_of(case: CacheGatherCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose heads have ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, case.kv_heads, dim, case.torch_dtype)


def _pool(case: CacheGatherCase, name: str, dim: int) -> torch.Tensor:
    return behind(_data(case, name, layout_of(case, dim).shape), case.first_page)


def build_inputs(case: CacheGatherCase) -> CacheGatherInputs:
    """Build the inputs of a case: pages have names in no order, and all elements have bits of their own."""
    starts = torch.tensor([request.start for request in case.requests], dtype=torch.int32)
    return CacheGatherInputs(
        key_cache=_pool(case, "key cache", case.head_dim),
        value_cache=_pool(case, "value cache", case.value_head_dim),
        block_table=_block_table(case),
        lengths=torch.tensor([request.length for request in case.requests], dtype=torch.int32),
        starts=None if case.starts == "none" else starts,
        key=_data(case, "key", (case.rows, case.kv_heads, case.head_dim)),
        value=_data(case, "value", (case.rows, case.kv_heads, case.value_head_dim)),
        page_size=case.page_size,
        layout=case.layout,
    )


def _data(case: CacheGatherCase, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return random_bits(Stream(case.seed, name), shape, case.torch_dtype)


def _block_table(case: CacheGatherCase) -> torch.Tensor:
    """Pages of the requests; those before the first token that is read are pages as well, which nothing reads."""
    names = page_names(case.seed, case.pages) if case.page_order == "scattered" else list(range(1, case.pages))
    unused = {"page 0": [0], "-1": [-1], "any page": names}[case.unused]
    width = case.width
    words = Stream(case.seed, "unused").random_uint64(len(case.requests) * width).tolist()
    filler, fresh = iter([unused[int(word % len(unused))] for word in words]), iter(names)
    shared = [next(fresh) for _ in range(min(case.shared_pages, max(map(case.last_page, case.requests))))]
    table = []
    for request in case.requests:
        first, last = request.start // case.page_size, case.last_page(request)
        pages = [*shared[:last], *(next(fresh) for _ in range(len(shared), last))]
        table.append([pages[column] if first <= column < last else next(filler) for column in range(width)])
    numbers = torch.tensor(table, dtype=torch.int32)
    return torch.where(numbers < 0, numbers, numbers + case.first_page)


def page_names(seed: int, pages: int) -> list[int]:
    """Return the pages of a pool but the dummy, in the order in which they are taken.

    Which of two pages lies first in the pool does not depend on how many there are, so that a case keeps it while it
    gets smaller.
    """
    words = Stream(seed, "pages").random_uint64(pages - 1)
    return [pages - 1 - int(rank) for rank in words.argsort(kind="stable").argsort(kind="stable")]


def coordinates(inputs: CacheGatherInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output; rows behind the last token are nowhere."""
    rows, heads, dim = (inputs.key if output == "key" else inputs.value).shape
    lengths = inputs.lengths.to(torch.int64)
    request = torch.full((rows,), NOWHERE)
    request[: int(lengths.sum())] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    first_row = (torch.cumsum(lengths, 0) - lengths)[request.clamp(min=0)]
    starts = torch.zeros_like(lengths) if inputs.starts is None else inputs.starts.to(torch.int64)
    token = torch.where(request == NOWHERE, NOWHERE, torch.arange(rows) - first_row + starts[request.clamp(min=0)])
    page = torch.where(token == NOWHERE, NOWHERE, token // inputs.page_size)
    offset = torch.where(token == NOWHERE, NOWHERE, token % inputs.page_size)
    places = {"request": request, "token": token, "logical page": page, "offset": offset}
    return {
        **{name: place[:, None, None] for name, place in places.items()},
        "head": torch.arange(heads)[None, :, None],
        "dim": torch.arange(dim)[None, None, :],
    }


def _pages_renamed(inputs: CacheGatherInputs, case: CacheGatherCase) -> CacheGatherInputs:
    """Move every page to another place of the pool, and change the block table alike."""
    moved_to = torch.tensor([0, *(1 + page for page in Stream(case.seed, "names").permutation(case.pages - 1))])
    key_cache, value_cache = torch.empty_like(inputs.key_cache), torch.empty_like(inputs.value_cache)
    key_cache[moved_to], value_cache[moved_to] = inputs.key_cache, inputs.value_cache
    table = inputs.block_table.to(torch.int64)
    table = torch.where(table < 0, table, moved_to[table]).to(torch.int32)
    return replace(inputs, key_cache=key_cache, value_cache=value_cache, block_table=table)


def _in_plain_layout(inputs: CacheGatherInputs, case: CacheGatherCase) -> Changed[CacheGatherInputs]:
    """Read the same tokens out of caches in the order of the tensor."""
    plain = replace(
        inputs,
        layout=PLAIN,
        key_cache=layout_of(case, case.head_dim).to_tokens(inputs.key_cache).contiguous(),
        value_cache=layout_of(case, case.value_head_dim).to_tokens(inputs.value_cache).contiguous(),
    )
    return Changed(plain, case=replace(case, layout=PLAIN))


def _pieces_equal_whole(subject: Subject, case: CacheGatherCase) -> Comparison:
    """Read every request up to the border of a page, and then from there."""
    inputs, lengths = build_inputs(case), [request.length for request in case.requests]
    cuts = [_cut(request, case.page_size) for request in case.requests]
    rest = [length - cut for length, cut in zip(lengths, cuts, strict=True)]
    begins = [request.start for request in case.requests]
    again = [begin + cut for begin, cut in zip(begins, cuts, strict=True)]
    pieces = []
    for counts, starts in ((cuts, begins), (rest, again)):
        requests = tuple(Stretch(length, start) for length, start in zip(counts, starts, strict=True))
        kind = "page" if case.starts == "none" else case.starts
        subject.require(replace(case, requests=requests, starts=kind), "a piece of every request")
        part = replace(inputs, lengths=_int32(counts), starts=_int32(starts))
        pieces.append(_by_request(subject.run(part), counts))
    whole = _by_request(subject.run(inputs), lengths)
    together = {name: torch.cat([pieces[0][name], pieces[1][name]]) for name in pieces[0]}
    return same_bits(whole, together, "in one call against two")


def _cut(request: Stretch, page_size: int) -> int:
    """Tokens of the first piece: up to the last border of a page inside the stretch, none if there is no such."""
    last = request.start + request.length - 1
    return max(0, last // page_size * page_size - request.start) if request.length else 0


def _int32(numbers: Sequence[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _by_request(outputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Outputs of each request by themselves, without the rows behind the last token."""
    ends = list(itertools.accumulate(lengths))
    return {
        f"{name} of request {request}": rows[end - length : end]
        for name, rows in outputs.items()
        for request, (length, end) in enumerate(zip(lengths, ends, strict=True))
    }


def _sizes(model: Model) -> Box | None:
    if not model.layers:
        return None
    return {
        "head_dims": model.head_dims,
        "kv_heads": model.kv_heads,
        "page_size": (PAGE_SIZE,),
        "dtype": ("bfloat16",),
    }


def _read(inputs: CacheGatherInputs) -> list[int]:
    """Tokens of each request up to the last one that is read; 0 for none."""
    starts = torch.zeros_like(inputs.lengths) if inputs.starts is None else inputs.starts
    return [
        start + length if length else 0 for start, length in zip(starts.tolist(), inputs.lengths.tolist(), strict=True)
    ]


component = Component(
    name="cache_gather",
    summary="keys and values of a batch, read out of a paged cache into one piece, byte by byte",
    case_type=CacheGatherCase,
    outputs=("key", "value"),
    inputs=build_inputs,
    reference=cache_gather,
    illegal=(
        *illegal_pages("block_table", "key_cache", lambda inputs: inputs.page_size, _read),
        wrong_element("a negative length", "lengths", constant(-1)),
        wrong_element("a negative start", "starts", constant(-1)),
    ),
    coordinates=coordinates,
    highlighted_region="NZ",
    relations=(
        relation("page_names_do_not_matter", "where in the pool a page lies changes no bit", _pages_renamed, bits=True),
        Property("pieces_equal_whole", "two calls, the second one from where the first ended, read what one call reads",
                 _pieces_equal_whole, needs={"starts": ("page", "token")}),
        relation("layouts_agree", "the same tokens are read out of every layout", _in_plain_layout, bits=True,
                 within={"layout": ("PA_BNSD", "PA_NZ")}, needs={"layout": (PLAIN,)}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["cache_gather"],
)  # fmt: skip
