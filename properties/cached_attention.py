"""Attention over what was just written to the cache: its cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, choice, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.illegal import illegal_lengths, illegal_pages, illegal_slots, read_by_batch
from npudiff.properties._shared.slots import page_names, page_order_axis
from npudiff.properties.sliding_attention.strategy import MOST_HEADS
from npudiff.reference.cached_attention import CachedAttentionInputs, cached_attention
from npudiff.reference.paged_kv import LAYOUTS
from npudiff.text import listed

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_LENGTHS = range(1, 2**16 + 1)
_SIZES = range(1, 2**12 + 1)

POISON = 4096.0
"""What the pool holds before: finite, exact in 16 bits, and far above what any right output holds."""

TILES = (63, 64, 65, 70, 127, 128, 129)
"""New tokens around those that a kernel takes in one go."""

MOST_OF_HEADS = 2**10
"""Elements of a key of all heads, where head dims are others than usual."""

TILED_SHARE = 9
"""One of so many cases has chunks of so many tokens, and a window that is smaller, or none."""


@dataclass(frozen=True)
class Request:
    """New tokens and total tokens of one request."""

    query: int
    kv: int


def _is_tiled(case: CachedAttentionCase) -> bool:
    return bool(case.place_of_tiled == TILED_SHARE - 1 and not case.far)


def _draw_requests(choose: Chooser, box: Box, case: CachedAttentionCase) -> tuple[Request, ...]:
    tiled = _is_tiled(case)
    return choose.draw_list(
        box,
        "batch",
        (1, 2) if tiled else (1, 2, 3),
        lambda: _draw_request(choose, box, case.page_size, tiled),
        lambda first, other: replace(other, query=first.query, kv=max(first.query, other.kv)),
    )


@dataclass(frozen=True)
class CachedAttentionCase(Case):
    """A pool that is written and read."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request"),
    )
    window: int | None = axis(
        "visible keys, the query's own included; none for all", range(1, 2**31), None, optional=True,
        drawn=lambda case: (1, 2, 15, 16, 17, *((None,) if _is_tiled(case) else (case.page_size + 1, None, None))),
        shown="window {}", always=True,
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", _SIZES, 16, drawn=lambda case: (16, 32) if case.far else (16, 32, 48, 64, 128),
        shown="page {}", always=True,
    )  # fmt: skip
    kv_heads: int = axis(
        "KV heads", _SIZES, 1, drawn=(1, 2, 3), affordable=lambda _, heads: heads <= MOST_HEADS,
        shown=lambda case: f"heads {case.kv_heads * case.group}:{case.kv_heads}", region="several heads",
    )  # fmt: skip
    group: int = axis(
        "query heads per KV head", _SIZES, 1, drawn=(1, 2, 5),
        affordable=lambda case, group: group * case.kv_heads <= MOST_HEADS, shown="",
    )  # fmt: skip
    head_dim: int = axis(
        "elements of a head, in whole strips", range(16, 2**12 + 1, 16), 64, drawn=(64, 128),
        affordable=lambda case, dim: case.far != "head_dim" or dim * case.kv_heads <= MOST_OF_HEADS,
        shown="dim {}", always=True,
    )  # fmt: skip
    dtype: str = axis("dtype of queries, keys and values", tuple(DTYPES), "bfloat16", always=True)
    write_layout: str = axis(
        "how the writer leaves the pool", LAYOUTS, "PA_BSND",
        shown=lambda case: f"written {case.write_layout}, read {case.read_layout}",
    )  # fmt: skip
    read_layout: str = axis("how attention finds the pool", LAYOUTS, "PA_BSND", shown="")
    rows: str = rows.axis()
    seed: int = seed()
    page_order: str = page_order_axis()

    place_of_tiled = choice(range(TILED_SHARE))
    drawn_first = ("place_of_tiled", "page_size", "window", "kv_heads")
    shown_first = ("requests", "write_layout")
    outliers = ("batch", "kv_heads", "group", "head_dim", "head_dim")
    tied = ("kv_heads", "group", "page_size")

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

    @property
    def pages(self) -> int:
        """Pages of the pool: the dummy page 0, one that is nobody's, and those of all requests."""
        return 2 + sum(-(-request.kv // self.page_size) for request in self.requests)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if any(request.query > request.kv for request in self.requests):
            yield "a request has no more new tokens than tokens"
        queries = sum(request.query for request in self.requests) * self.group
        if max(self.pages * self.page_size, queries) * self.kv_heads * self.head_dim > 2**24:
            yield f"the inputs would have more than {2**24} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "layouts differ": self.write_layout != self.read_layout,
            "NZ": "PA_NZ" in (self.write_layout, self.read_layout),
            "query length 1": any(request.query == 1 for request in self.requests),
            "partial page": any(request.kv % self.page_size for request in self.requests),
        }


def _draw_request(choose: Chooser, box: Box, page_size: int, tiled: bool) -> Request:
    queries = within(TILES if tiled else (1, 1, 2, 7, 17), box.get("query_length"))[:4096]
    totals = [1, 2, 5, page_size - 1, page_size, page_size + 1, 2 * page_size + 3]
    if tiled:
        totals = [*totals, *(rows + more for rows in TILES for more in (0, 1, 20))]
    elif min(queries) > min(totals):  # what a user asks for
        totals = [*totals, *(rows + more for rows in queries for more in (0, 1, page_size))]
    totals = [total for total in within(totals, box.get("kv_length"))[:4096] if total >= min(queries)]
    assume(totals)
    total = choose.pick(totals)
    fitting = [rows for rows in queries if rows <= total]
    assume(fitting)
    return Request(choose.pick(fitting), total)


def build_inputs(case: CachedAttentionCase) -> CachedAttentionInputs:
    """Build the inputs of a case: pages in no order, and a pool that holds poison wherever nothing is written."""
    dtype, size = DTYPES[case.dtype], case.page_size
    names = iter(page_names("pages", case.seed, case.pages, case.page_order))
    width = max(-(-request.kv // size) for request in case.requests) + 1
    table = torch.zeros(len(case.requests), width, dtype=torch.int32)
    slots = []
    for row, request in enumerate(case.requests):
        own = [next(names) for _ in range(-(-request.kv // size))]
        table[row, : len(own)] = torch.tensor(own, dtype=torch.int32)
        slots += [own[token // size] * size + token % size for token in range(request.kv)]
    shape = (len(slots), case.kv_heads, case.head_dim)
    query_shape = (sum(request.query for request in case.requests), case.kv_heads * case.group, case.head_dim)
    pool = torch.full((case.pages, size, case.kv_heads, case.head_dim), POISON, dtype=dtype)
    return CachedAttentionInputs(
        query=rows.with_row_stride(Stream(case.seed, "query").normal(query_shape, dtype), case.rows),
        key=rows.with_row_stride(Stream(case.seed, "key").normal(shape, dtype), case.rows, rows.GAPS[1]),
        value=rows.with_row_stride(Stream(case.seed, "value").normal(shape, dtype), case.rows, rows.GAPS[2]),
        key_cache=pool,
        value_cache=pool.clone(),
        slots=rows.with_row_stride(torch.tensor(slots, dtype=torch.int32), case.rows),
        block_table=rows.with_row_stride(table, case.rows),
        query_lengths=tuple(request.query for request in case.requests),
        kv_lengths=tuple(request.kv for request in case.requests),
        window=case.window,
        scale=1 / math.sqrt(case.head_dim),
        write_layout=case.write_layout,
        read_layout=case.read_layout,
    )


def coordinates(inputs: CachedAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: request, position, head and element."""
    del output  # there is one
    request = torch.repeat_interleave(torch.arange(len(inputs.query_lengths)), torch.tensor(inputs.query_lengths))
    position = torch.cat(
        [torch.arange(kv - new, kv) for new, kv in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)]
    )
    return {
        "request": request[:, None, None],
        "kv position": position[:, None, None],
        "head": torch.arange(inputs.query.shape[1])[None, :, None],
        "element": torch.arange(inputs.query.shape[2])[None, None, :],
    }


def _other_layouts(inputs: CachedAttentionInputs, case: CachedAttentionCase) -> Changed[CachedAttentionInputs]:
    """The same tokens through pools in the other layout, on both sides."""
    swapped = {"PA_BSND": "PA_NZ", "PA_NZ": "PA_BSND"}
    layouts = {name: swapped[getattr(case, name)] for name in ("write_layout", "read_layout")}
    return Changed(replace(inputs, **layouts), case=replace(case, **layouts))  # type: ignore[arg-type]


component = Component(
    name="cached_attention",
    summary="keys and values written to a pool in one layout, and attention that reads them in another",
    case_type=CachedAttentionCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=cached_attention,
    illegal=(
        *illegal_slots("key_cache", lambda inputs: inputs.page_size),
        *illegal_pages("block_table", "key_cache", lambda inputs: inputs.page_size, read_by_batch),
        *illegal_lengths("block_table", lambda inputs: inputs.page_size),
    ),
    coordinates=coordinates,
    highlighted_region="layouts differ",
    relations=(
        relation("layouts_do_not_matter", "the layouts of the pool change the path, not the result", _other_layouts,
                 within={"write_layout": ("PA_BSND",)}, needs={"write_layout": ("PA_NZ",)}),
    ),
    baselines=BASELINES["cached_attention"],
)  # fmt: skip
