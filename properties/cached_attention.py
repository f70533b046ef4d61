"""Attention over what was just written to the cache: its cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties.sliding_attention.strategy import MOST_HEADS
from npudiff.reference.bounds import Expected
from npudiff.reference.cached_attention import CachedAttentionInputs, cached_attention
from npudiff.reference.paged_kv import LAYOUTS
from npudiff.text import listed

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_LENGTHS = range(1, 2**16 + 1)
_SIZES = range(1, 2**12 + 1)

AXES = {
    "batch": Axis("number of requests", range(1, 257)),
    "query_length": Axis("new tokens of a request; 1 is a decode", _LENGTHS),
    "kv_length": Axis("tokens of a request, the new ones included", _LENGTHS),
    "window": Axis("visible keys, the query's own included; none for all", range(1, 2**31), optional=True),
    "page_size": Axis("tokens per page", _SIZES),
    "kv_heads": Axis("KV heads", _SIZES),
    "group": Axis("query heads per KV head", _SIZES),
    "head_dim": Axis("elements of a head", (64, 128)),
    "dtype": Axis("dtype of queries, keys and values", tuple(DTYPES)),
    "write_layout": Axis("how the writer leaves the pool", LAYOUTS),
    "rows": rows.AXIS,
    "read_layout": Axis("how attention finds the pool", LAYOUTS),
}

POISON = 4096.0
"""What the pool holds before: finite, exact in 16 bits, and far above what any right output holds."""

_MAX_ELEMENTS = 2**24

TILES = (63, 64, 65, 70, 127, 128, 129)
"""New tokens around those that a kernel takes in one go."""

TILED_SHARE = 9
"""One of so many cases has chunks of so many tokens, and a window that is smaller, or none."""


@dataclass(frozen=True)
class Request:
    """New tokens and total tokens of one request."""

    query: int
    kv: int


@dataclass(frozen=True)
class CachedAttentionCase:
    """A pool that is written and read; see the axes."""

    requests: tuple[Request, ...]
    window: int | None = None
    page_size: int = 16
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 64
    dtype: str = "bfloat16"
    write_layout: str = "PA_BSND"
    read_layout: str = "PA_BSND"
    rows: str = "contiguous"
    seed: int = 0

    @property
    def pages(self) -> int:
        """Pages of the pool: the dummy page 0, one that is nobody's, and those of all requests."""
        return 2 + sum(-(-request.kv // self.page_size) for request in self.requests)


def cases(constraints: Constraints) -> st.SearchStrategy[CachedAttentionCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> CachedAttentionCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "batch", "kv_heads", "group")
    tiled = choose.pick(range(TILED_SHARE)) == TILED_SHARE - 1 and not choose.far
    page_size = choose.value(box, "page_size", (16, 32) if choose.far else (16, 32, 48, 64, 128))
    window = choose.value(
        box, "window", (1, 2, 15, 16, 17, *([] if tiled else [page_size + 1]), *[None] * (1 if tiled else 2))
    )
    heads = choose.options(box, "kv_heads", (1, 2, 3))
    kv_heads = choose.pick([count for count in heads if count <= MOST_HEADS] or [min(heads)])
    groups = choose.options(box, "group", (1, 2, 5))
    case = CachedAttentionCase(
        requests=choose.draw_list(
            box, "batch", (1, 2) if tiled else (1, 2, 3), lambda: _draw_request(choose, box, page_size, tiled)
        ),
        window=window,
        page_size=page_size,
        kv_heads=kv_heads,
        group=choose.pick([count for count in groups if count * kv_heads <= MOST_HEADS] or [min(groups)]),
        head_dim=choose.value(box, "head_dim", (64, 128)),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        write_layout=choose.value(box, "write_layout", LAYOUTS),
        read_layout=choose.value(box, "read_layout", LAYOUTS),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )
    return choose.tie_sizes(case, ("kv_heads", "group", "page_size"), values, check_case, box)


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
    names = iter([1 + page for page in Stream(case.seed, "pages").permutation(case.pages - 1)])
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


def values(case: CachedAttentionCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name, None),) for name in AXES}
    return used | {
        "batch": (len(case.requests),),
        "query_length": {request.query for request in case.requests},
        "kv_length": {request.kv for request in case.requests},
    }


def features(case: CachedAttentionCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "layouts differ": case.write_layout != case.read_layout,
        "NZ": "PA_NZ" in (case.write_layout, case.read_layout),
        "query length 1": any(request.query == 1 for request in case.requests),
        "several heads": case.kv_heads > 1,
        "sliced rows": case.rows == "sliced",
        "partial page": any(request.kv % case.page_size for request in case.requests),
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: CachedAttentionCase) -> str:
    """Return the case as one short line."""
    parts = [
        listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request"),
        f"written {case.write_layout}, read {case.read_layout}",
        f"window {'none' if case.window is None else case.window}",
        f"page {case.page_size}",
        f"heads {case.kv_heads * case.group}:{case.kv_heads}",
        f"dim {case.head_dim}",
        case.dtype,
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: CachedAttentionCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    if not 1 <= len(case.requests) <= 256 or any(
        not 1 <= request.query <= request.kv <= 2**16 for request in case.requests
    ):
        raise ValueError("a case has 1 to 256 requests of 1 to 65536 tokens, and no more new tokens than tokens")
    for name in ("page_size", "kv_heads", "group", "head_dim"):
        if not 1 <= getattr(case, name) <= 4096:
            raise ValueError(f"{name} must lie in 1..4096, got {getattr(case, name)}")
    if case.window is not None and not 1 <= case.window < 2**31:
        raise ValueError(f"window must be none or in 1..2**31-1, got {case.window}")
    if case.dtype not in DTYPES or {case.write_layout, case.read_layout} - set(LAYOUTS) or case.head_dim % 16:
        raise ValueError("unknown dtype or layout, or a head dim that fills no strips")
    rows.check_rows(case.rows)
    queries = sum(request.query for request in case.requests) * case.group
    if max(case.pages * case.page_size, queries) * case.kv_heads * case.head_dim > _MAX_ELEMENTS:
        raise ValueError(f"the inputs would have more than {_MAX_ELEMENTS} elements")
    if not 0 <= case.seed < 2**63:
        raise ValueError(f"seed {case.seed} out of range")


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


def _layouts_do_not_matter(subject: Subject, case: CachedAttentionCase) -> Comparison:
    """The same tokens through pools in the other layout, on both sides."""
    swapped = {"PA_BSND": "PA_NZ", "PA_NZ": "PA_BSND"}
    other = replace(case, write_layout=swapped[case.write_layout], read_layout=swapped[case.read_layout])
    subject.require(other, "the same in the other layouts")
    inputs = build_inputs(case)
    first = subject.run(inputs)["output"]
    bound = 2 * subject.expected(inputs)["output"].bound
    right = {"output": Expected(first.to(torch.float64), bound, first.dtype)}
    return compare(right, subject.run(build_inputs(other)), "pools in the other layouts")


component = Component(
    name="cached_attention",
    summary="keys and values written to a pool in one layout, and attention that reads them in another",
    case_type=CachedAttentionCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=cached_attention,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="layouts differ",
    relations=(
        Property("layouts_do_not_matter", "the layouts of the pool change the path, not the result",
                 _layouts_do_not_matter, within={"write_layout": ("PA_BSND",)}, needs={"write_layout": ("PA_NZ",)}),
    ),
    baselines=BASELINES["cached_attention"],
)  # fmt: skip
