"""Cases of reading tokens out of a paged cache: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.properties._shared.moved_data import DTYPES as TORCH_DTYPES
from npudiff.reference.cache_layout import LAYOUTS, CacheLayout
from npudiff.text import counted, listed

DTYPES = ("bfloat16", "float16", "int8")
HEAD_DIMS = ("32", "64", "128", "192/128", "512/64", "80", "96", "256", "576")
STARTS = ("none", "page", "token")
UNUSED = ("page 0", "-1", "any page")

_SIZES = range(1, 2**16 + 1)
_COUNTS = range(2**16)

AXES = {
    "batch": Axis("number of requests", range(1, 4097)),
    "length": Axis("tokens of a request that are read", range(2**20 + 1)),
    "starts": Axis("where reading begins: at token 0, at the first token of some page, or anywhere", STARTS),
    "spare_rows": Axis("rows of the packed outputs behind the last token", _COUNTS),
    "page_size": Axis("tokens per page", _SIZES),
    "kv_heads": Axis("KV heads", _SIZES),
    "head_dims": Axis("head dim of keys, and of values if it differs: 128 or 192/128", HEAD_DIMS),
    "dtype": Axis("dtype of the caches", DTYPES),
    "layout": Axis("how the caches lie", LAYOUTS),
    "shared_pages": Axis("first pages that all requests share, as after a prefix hit", _COUNTS),
    "unused": Axis("entries of the block table that name no page of a token that is read", UNUSED),
    "spare_columns": Axis("columns of the block table beyond the longest request", _COUNTS),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class Stretch:
    """The tokens of one request that are read."""

    length: int
    start: int = 0


@dataclass(frozen=True)
class CacheGatherCase:
    """Stretches of requests, read out of a paged cache."""

    requests: tuple[Stretch, ...]
    """The batch."""
    starts: str = "none"
    """``none``: nothing is said of starts, and all are 0. ``page``: all are at the border of a page. ``token``: any."""
    spare_rows: int = 0
    """Rows of the packed outputs behind the last token."""
    page_size: int = 16
    kv_heads: int = 1
    head_dim: int = 64
    value_head_dim: int = 64
    """Geometry; page 0 is a dummy."""
    dtype: str = "bfloat16"
    layout: str = "PA_BSND"
    """See the axes."""
    shared_pages: int = 0
    """First pages that all requests share."""
    unused: str = "page 0"
    """What entries of the block table hold that name no page of a token that is read."""
    spare_columns: int = 0
    """Columns of the block table beyond the longest request."""
    seed: int = 0
    """Seed of data and of the names of pages."""

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


def layout_of(case: CacheGatherCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose heads have ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, case.kv_heads, dim, case.torch_dtype)


def values(case: CacheGatherCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    unused = any(case.last_page(request) < case.width for request in case.requests)
    return {
        "batch": (len(case.requests),),
        "length": {request.length for request in case.requests},
        "starts": (case.starts,),
        "spare_rows": (case.spare_rows,),
        "page_size": (case.page_size,),
        "kv_heads": (case.kv_heads,),
        "head_dims": (join_head_dims(case.head_dim, case.value_head_dim),),
        "dtype": (case.dtype,),
        "layout": (case.layout,),
        "shared_pages": (case.shared_pages,),
        "unused": (case.unused,) if unused else (),
        "spare_columns": (case.spare_columns,),
    }


def features(case: CacheGatherCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    ends = [request.start + request.length for request in case.requests if request.length]
    checks = {
        "several requests": len(case.requests) > 1,
        "request of 0 tokens": any(not request.length for request in case.requests),
        "last page partial": any(end % case.page_size for end in ends),
        "last page full": any(end % case.page_size == 0 for end in ends),
        "several pages": any(case.last_page(request) > 1 for request in case.requests),
        "starts": any(request.start for request in case.requests),
        "NZ": case.layout == "PA_NZ",
        "V dim differs": case.head_dim != case.value_head_dim,
        "shared pages": case.shared_pages > 0 and len(case.requests) > 1,
        "rows to spare": case.spare_rows > 0,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: CacheGatherCase) -> str:
    """Return the case as one short line."""
    requests = [f"{one.length}@{one.start}" if one.start else f"{one.length}" for one in case.requests]
    parts = [
        f"tokens {listed(requests, 'request')}",
        f"starts {case.starts}" if case.starts != "none" else "",
        counted(case.spare_rows, "spare row") if case.spare_rows else "",
        case.layout,
        f"page {case.page_size}",
        f"heads {case.kv_heads}",
        f"dim {join_head_dims(case.head_dim, case.value_head_dim)}",
        case.dtype,
        counted(case.shared_pages, "shared page") if case.shared_pages else "",
        counted(case.spare_columns, "spare column") if case.spare_columns else "",
        f"unused {case.unused}" if case.unused != "page 0" else "",
        f"seed {case.seed}" if case.seed else "",
    ]  # fmt: skip
    return " · ".join(part for part in parts if part)


def check_case(case: CacheGatherCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name in ("page_size", "kv_heads", "head_dim", "value_head_dim"):
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    for name in ("spare_rows", "shared_pages", "spare_columns"):
        if not 0 <= getattr(case, name) < 65_536:
            raise ValueError(f"{name} must lie in 0..65535, got {getattr(case, name)}")
    if case.dtype not in DTYPES or case.layout not in LAYOUTS or case.unused not in UNUSED:
        raise ValueError(f"unknown dtype, layout or unused: {case.dtype}, {case.layout}, {case.unused}")
    if case.starts not in STARTS or not 0 <= case.seed < 2**63 or not 1 <= len(case.requests) <= 4096:
        raise ValueError("starts, seed or number of requests out of range")
    _check_requests(case)
    widest = max(case.head_dim, case.value_head_dim) * case.kv_heads
    if widest * max(case.pages * case.page_size, case.rows) > _MAX_ELEMENTS:
        raise ValueError(f"a cache would have more than {_MAX_ELEMENTS} elements")
    if len(case.requests) * case.width > _MAX_ELEMENTS:
        raise ValueError(f"the block table would have more than {_MAX_ELEMENTS} entries")
    for dim in (case.head_dim, case.value_head_dim):
        _ = layout_of(case, dim).shape  # raises for strips that are not filled


def _check_requests(case: CacheGatherCase) -> None:
    step = {"none": 2**21, "page": case.page_size, "token": 1}[case.starts]
    for request in case.requests:
        if not 0 <= request.length <= 2**20 or not 0 <= request.start <= 2**20:
            raise ValueError(f"length and start must lie in 0..{2**20}, got {request}")
        if request.start % step:
            raise ValueError(f"{request} does not start where starts {case.starts} says")
