"""Cases of sliding-window attention: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from npudiff.model.case import DeclaredCase, axis, derived, part, seed
from npudiff.model.constraints import Numbers
from npudiff.properties._shared import rows
from npudiff.properties._shared.far_pool import far_pool_axis
from npudiff.properties._shared.head_dims import HEAD_DIMS, join_head_dims
from npudiff.properties._shared.slots import page_order_axis
from npudiff.reference.paged_kv import LAYOUTS
from npudiff.text import listed

RECIPES = ("gaussian", "needle", "outlier", "cold")
"""gaussian: independent values. needle: keys at every border take about half of the weight each. outlier: values at the
borders are 64 times larger. cold: every score is below -50,000."""

POISONS = ("large", "nan")
WEIGHT_SUMS = ("float32", "rounded")
EXPONENTIALS = ("float32", "cubic")
BLIND_ROWS = ("none", "empty", "any")
DIMS = ("64", "128", "192/128", "80", "96", "192", "256", "576/512", "512", "72")
SCALES = (1.0, 0.5, 4.0)

_LENGTHS = range(2**20 + 1)
_SIZES = range(1, 2**16 + 1)

_MAX_ELEMENTS = 2**28
_MAX_SCORES = 2**34
_MAX_COLD_DIM = 1024  # beyond, float32 cannot tell scores of -60,000 apart, and no bound says anything


@dataclass(frozen=True)
class Request:
    """New tokens and total tokens of one request."""

    query: int
    kv: int


def _requests_text(case: SlidingAttentionCase) -> str:
    return listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request")


@dataclass(frozen=True)
class SlidingAttentionCase(DeclaredCase):
    """One attention call, as sizes and a recipe; the strategy of the component draws it."""

    requests: tuple[Request, ...] = part(shown=_requests_text)
    window: int | None = axis(
        "visible keys, the query's own included; none for a full layer", range(1, 2**31), None, optional=True,
        shown="window {}", always=True,
    )  # fmt: skip
    page_size: int = axis("tokens per page", _SIZES, 16, shown="page {}", always=True)
    kv_heads: int = axis("KV heads", _SIZES, 1, shown=lambda case: f"heads {case.heads}:{case.kv_heads}")
    group: int = axis("query heads per KV head", _SIZES, 1, shown="")
    head_dim: int = part(64)
    value_head_dim: int = part(64)
    dtype: str = axis("dtype of queries, keys and values", ("bfloat16", "float16"), "bfloat16", always=True)
    sinks: bool = axis("whether heads have a learned sink", (False, True), False)
    hybrid: bool = axis("whether the model has a second pool with a block table of its own", (False, True), False)
    padded_rows: int = axis("query rows beyond the last request", range(2**16 + 1), 0, shown="{} padded rows")
    spare_pages: int = part(0, range(2**16 + 1), shown="{} spare page(s)")
    """Table columns beyond the longest request."""
    scale: float = axis(
        "factor of the scores, in units of 1/sqrt(head dim)", Numbers(1e-6, 1e6), 1.0, drawn=SCALES, shown="scale x{:g}"
    )
    recipe: str = axis("how keys and values are made", RECIPES, "gaussian")
    poison: str = axis(
        "what lies in storage that must not be used: large finite values, or NaN", POISONS, "large", shown="NaN poison"
    )
    seed: int = seed()
    layout: str = axis("how the pages lie", LAYOUTS, "PA_BSND", shown="NZ pages", region="NZ pages")
    rows: str = rows.axis()
    # Where only some devices round: their bound is for those who ask for it.
    scaled_query: bool = axis(
        "whether the query is scaled, and rounded to its dtype again", (False, True), False, drawn=(False,)
    )
    weight_sum: str = axis(
        "weights whose sum is the denominator: as they are in float32, or as they were rounded", WEIGHT_SUMS, "float32",
        drawn=("float32",), shown="sum of {} weights",
    )  # fmt: skip
    exponential: str = axis(
        "exponentials: float32, or a polynomial of degree 3", EXPONENTIALS, "float32", drawn=("float32",), shown="{}"
    )
    merges: int = axis(
        "times that a result over some of the keys is rounded before it is merged: 1 where all are merged at once",
        range(17), 0, drawn=(0,), shown="{} merge(s)",
    )  # fmt: skip
    page_order: str = page_order_axis()
    far_pool: bool = far_pool_axis()

    shown_first = ("requests", "window", "page_size", "kv_heads", "head_dims", "dtype", "layout")

    @derived("number of requests", range(1, 4097))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("new tokens of a request; 1 is a decode", _LENGTHS, each=True)
    def query_length(self) -> Collection[int]:
        """New tokens of the requests."""
        return {request.query for request in self.requests}

    @derived("whether requests differ in their number of new tokens", (False, True))
    def ragged(self) -> bool:
        """Whether requests differ in their number of new tokens."""
        return len(self.query_length) > 1

    @derived("tokens of a request, the new ones included", _LENGTHS, each=True)
    def kv_length(self) -> Collection[int]:
        """Tokens of the requests."""
        return {request.kv for request in self.requests}

    @derived(
        "head dim of queries and keys, and of values if it differs: 128 or 192/128", HEAD_DIMS, drawn=DIMS,
        shown="dim {}",
    )  # fmt: skip
    def head_dims(self) -> str:
        """Head dim of queries and keys, and of values if it differs."""
        return join_head_dims(self.head_dim, self.value_head_dim)

    @derived(
        "rows that see no key: none, empty (requests of length 0), any (query longer than KV)", BLIND_ROWS
    )  # fmt: skip
    def fully_masked_rows(self) -> str:
        """Which query rows see no key: ``none``, ``empty`` (those of requests without tokens), or ``any``."""
        lengths = [request.kv for request in self.requests if request.query > request.kv]
        return "any" if any(lengths) else "empty" if lengths else "none"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def tokens(self) -> int:
        """Query rows, padding included."""
        return sum(request.query for request in self.requests) + self.padded_rows

    @property
    def width(self) -> int:
        """Columns of the block table."""
        longest = max((request.kv for request in self.requests), default=0)
        return max(1, -(-longest // self.page_size)) + self.spare_pages

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        dims = self.head_dim + self.value_head_dim
        if self.layout == "PA_NZ" and (self.head_dim % 16 or self.value_head_dim % 16):
            yield f"head dims of PA_NZ fill strips of 16, got {self.head_dims}"
        if self.recipe == "cold" and self.head_dim > _MAX_COLD_DIM:
            yield f"a cold case has a head dim of at most {_MAX_COLD_DIM}, got {self.head_dim}"
        query = self.tokens * self.heads * dims
        pages = (16 * len(self.requests) + 8) * self.page_size * self.kv_heads * dims
        if max(query, pages, self.width * len(self.requests)) > _MAX_ELEMENTS:
            yield f"the inputs would have more than {_MAX_ELEMENTS} elements"
        if self.heads * sum(request.query * request.kv for request in self.requests) > _MAX_SCORES:
            yield f"the case would compute more than {_MAX_SCORES} scores"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        window = self.window
        return {
            "query length 1": any(request.query == 1 for request in self.requests),
            "query length 2..8": any(2 <= request.query <= 8 for request in self.requests),
            "mixed batch": len({request.query == 1 for request in self.requests}) == 2,
            "prefix": any(0 < request.query < request.kv for request in self.requests),
            "window cuts": window is not None and any(request.kv > window for request in self.requests),
            "long history": any(request.kv > 8192 for request in self.requests),
            "request without rows": any(not request.query for request in self.requests),
            "partial page": any(request.kv % self.page_size for request in self.requests),
            "blind rows": self.fully_masked_rows != "none",
        }
