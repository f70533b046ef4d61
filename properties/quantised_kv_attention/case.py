"""Cases of attention over int8 keys and values: requests over a pool, and what gives its integers back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed
from npudiff.model.constraints import Box, Numbers
from npudiff.properties._shared import rows
from npudiff.properties._shared.head_groups import has_many_pages, with_many
from npudiff.properties._shared.new_tokens import draw_few, rows_of
from npudiff.properties._shared.slots import page_order_axis
from npudiff.properties.sliding_attention.case import POISONS, SCALES, Request, SlidingAttentionCase
from npudiff.reference.paged_kv import LAYOUTS
from npudiff.text import listed

FORMS = ("channel", "tensor", "head", "token", "token and head", "channel, values token")
"""What has a scale of its own. The last is of keys per channel and of values per token."""

OFFSETS = ("none", "whole", "fractional")
"""Offsets that are none, integers, or quarters: those do not fit into 8 bits beside an integer."""

SPREADS = ("alike", "wide", "powers of two")
"""How far scales lie apart: by a factor of 2, by thousands, or by any power of two. Nothing rounds with the last."""

RECIPES = ("gaussian", "needle", "outlier", "saturated")
"""gaussian: independent integers. needle: keys at every border take about half of the weight each. outlier: values
there are as large as integers are. saturated: an eighth of all integers are -128 or 127."""

BLIND_ROWS = ("none", "empty")

HEAD_DIMS = range(32, 513, 32)
"""Head dims fill strips of 32 integers, as operators ask."""

LONG = (*["no"] * 9, "draft", "deep", "deep")
"""How often one request has a long history, unless something else is far, as ``draw_requests`` takes it."""

MOST_NEW = 400
"""New tokens of all requests where there is a choice: one or a draft each of hundreds, or a chunk of some."""

MOST_TOKENS = 2**15
"""Tokens of all requests where there is a choice; ``sliding_attention`` draws longer histories."""

MOST_SCORES = 2**17
"""Scores up to which a case may have more heads."""

MOST_HEADS = 256
"""Query heads that a case has at most; operators take no more."""

GROUPS = (1, 1, 2, 3, 4, 5, 7, 8, 10, 13)

POOL_ELEMENTS = 2**18
"""Integers of keys up to which a case may have more KV heads, or wider ones."""

_LENGTHS = range(2**20 + 1)


def _draw_requests(choose: Chooser, box: Box, case: QuantisedKvAttentionCase) -> tuple[Request, ...]:
    return draw_few(choose, box, case.page_size, LONG, MOST_NEW, MOST_TOKENS)


def _scores(requests: Sequence[Request]) -> int:
    return sum(request.query * request.kv for request in requests)


def _affords_heads(case: QuantisedKvAttentionCase, heads: int) -> bool:
    """Whether so many query heads are worth what they cost."""
    return heads <= MOST_HEADS and heads * max(_scores(case.requests), 64 * rows_of(case.requests)) <= MOST_SCORES


def _affords_pool(case: QuantisedKvAttentionCase, elements: int) -> bool:
    """Whether tokens of so many elements are worth what they cost."""
    pages = 6 + sum(min(8, 1 + request.kv // case.page_size) for request in case.requests)
    return pages * case.page_size * elements <= POOL_ELEMENTS * (8 if vars(case).get("far") else 1)


@dataclass(frozen=True)
class QuantisedKvAttentionCase(Case):
    """One attention call, as sizes and recipes."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request", 12),
    )
    form: str = axis(
        "what has a scale of its own: an element of a KV head, the cache, a head, a token, a token of a head", FORMS,
        "channel", drawn=(*FORMS[:1] * 4, *FORMS), shown="per {}", always=True, region="scales per {}",
    )  # fmt: skip
    offsets: str = axis(
        "what is added to integers: nothing, integers, or quarters", OFFSETS, "none",
        drawn=(*OFFSETS[:1] * 2, *OFFSETS), shown="{} offsets", region="offsets",
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", range(16, 513, 16), 32,
        drawn=lambda case: (32, 64) if case.far else (32, 128, 64, 96, 48, 128, 160, 256, 512, 16), shown="page {}",
        always=True,
    )  # fmt: skip
    kv_heads: int = axis(
        "KV heads", range(1, 257), 1, drawn=(1, 1, 2, 1, 3, 4, 8), affordable=lambda case, heads: (
            _affords_heads(case, heads) and _affords_pool(case, heads * (32 if vars(case).get("far") else 128))
        ), shown=lambda case: f"heads {case.heads}:{case.kv_heads}", always=True,
    )  # fmt: skip
    group: int = axis(
        "query heads per KV head", range(1, 65), 1, shown="",
        drawn=lambda case: with_many(
            GROUPS, (16, 17, 32, 64), beside_many=has_many_pages([one.kv for one in case.requests], case.page_size)
        ),
        affordable=lambda case, group: _affords_heads(case, case.kv_heads * group), region="grouped heads",
    )  # fmt: skip
    head_dim: int = axis(
        "elements of a head", HEAD_DIMS, 128, drawn=(128, 128, 64, 128, 96, 32, 192, 256, 512, 160), shown="dim {}",
        affordable=lambda case, dim: _affords_pool(case, case.kv_heads * dim), always=True,
    )  # fmt: skip
    dtype: str = axis("dtype of queries and outputs", ("bfloat16", "float16"), "bfloat16", always=True)
    padded_rows: int = axis(
        "query rows beyond the last request", range(2**16 + 1), 0, drawn=(0, 0, 1, 3), shown="{} padded row(s)"
    )
    spare_pages: int = part(0, range(2**16 + 1), drawn=(0, 1, 2), shown="{} spare page(s)")
    """Table columns beyond the longest request."""
    scale: float = axis(
        "factor of the scores, in units of 1/sqrt(head dim)", Numbers(1e-3, 1e3), 1.0, drawn=SCALES, shown="scale x{:g}"
    )
    spread: str = axis("how far scales lie apart", SPREADS, "alike", shown="{} scales", region="{} scales")
    recipe: str = axis("how integers are made", RECIPES, "gaussian")
    poison: str = axis(
        "what scales of tokens are that must not be read: large finite values, or NaN", POISONS, "large",
        applies=lambda case: "token" in case.form, shown="NaN poison",
    )  # fmt: skip
    layout: str = axis("how the pages lie", LAYOUTS, "PA_BSND", shown="NZ pages", region="NZ pages")
    rows: str = rows.axis()
    seed: int = seed()
    page_order: str = page_order_axis()

    drawn_first = ("page_size", "requests", "kv_heads", "group", "head_dim")
    shown_first = ("requests", "form", "offsets", "page_size")
    outliers = ("batch", "kv_heads", "group", "head_dim")

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

    @derived("rows that see no key: none, or empty (requests of length 0)", BLIND_ROWS)
    def fully_masked_rows(self) -> str:
        """Whether there are rows of requests without tokens."""
        return "empty" if any(request.query > request.kv for request in self.requests) else "none"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def tokens(self) -> int:
        """Query rows, padding included."""
        return rows_of(self.requests) + self.padded_rows

    @property
    def as_attention(self) -> SlidingAttentionCase:
        """The same batch over a cache of 16 bits, which says where its pages and borders are."""
        return SlidingAttentionCase(
            requests=self.requests, window=None, page_size=self.page_size, kv_heads=self.kv_heads, group=self.group,
            head_dim=self.head_dim, value_head_dim=self.head_dim, dtype=self.dtype, padded_rows=self.padded_rows,
            spare_pages=self.spare_pages, scale=self.scale, seed=self.seed, page_order=self.page_order,
        )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        yield from self.as_attention.problems()
        if self.heads > MOST_HEADS:
            yield f"operators take at most {MOST_HEADS} heads, got {self.heads}"
        if any(request.query > request.kv > 0 for request in self.requests):
            yield "a request has more new tokens than tokens"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        several = [request for request in self.requests if request.query > 1]
        return {
            "query length 1": any(request.query == 1 for request in self.requests),
            "query length 2..16": any(request.query <= 16 for request in several),
            "mixed batch": 0 < len(several) < len(self.requests),
            "long history": any(request.kv > 8192 for request in self.requests),
            "request without rows": any(not request.query for request in self.requests),
            "partial page": any(request.kv % self.page_size for request in self.requests),
            "blind rows": self.fully_masked_rows != "none",
        }
