"""Cases of latent attention: requests over a pool of latents, in either form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from npudiff.draw.cases import Case, Chooser, assume, axis, derived, part, seed
from npudiff.model.constraints import Allowed, Box, Numbers, allows
from npudiff.properties._shared import rows
from npudiff.properties._shared.head_groups import has_many_pages, with_many
from npudiff.properties._shared.slots import page_order_axis
from npudiff.properties.sliding_attention.case import POISONS, SCALES, Request, SlidingAttentionCase
from npudiff.properties.sliding_attention.requests import draw_requests
from npudiff.reference.paged_kv import LAYOUTS
from npudiff.text import listed

FORMS = ("absorbed", "expanded")
"""absorbed: queries are of the latent's space, and all heads share the latents as keys and values. expanded: each head
has keys and values of its own, made from the latents."""

RECIPES = ("gaussian", "needle", "outlier")
"""gaussian: independent values. needle: rotated keys at every border take about half of the weight each. outlier:
latents at the borders are 16 times larger."""

BLIND_ROWS = ("none", "empty")
PREFIXES = ("none", "whole pages", "part of a page")

_LENGTHS = range(2**20 + 1)
_SIZES = range(1, 2**12 + 1)

SCORES = 2**19
"""Scores up to which a case may have more than one head."""

LONG = (*["no"] * 24, *["draft"] * 3, *["prompt"] * 2, *["deep"] * 5)
"""How often a request is long, as ``draw_requests`` takes it."""

HEADS = (1, 2, 4, 8, 16, 3, 5, 12, 20, 32)

MOST_HEADS = 256
"""Query heads that a case has at most where there is a choice."""

ROW_ELEMENTS = 2**20
"""Elements of the queries up to which it may."""

EXPANSION = 2**29
"""Products of an expansion, up to which a case is worth what it costs."""

_MAX_ELEMENTS, _MAX_SCORES = 2**28, 2**34


def _draw_requests(choose: Chooser, box: Box, case: LatentAttentionCase) -> tuple[Request, ...]:
    """Draw a batch as attention with a window does, without one; no request has more rows than keys, but for 0 keys."""
    allowed = {**box, "fully_masked_rows": box.get("fully_masked_rows", BLIND_ROWS)}
    long = choose.pick(LONG[:1] if choose.far or choose.usual_only else LONG)
    drawn = draw_requests(choose, allowed, case.page_size, None, 1, long)
    requests = _with_prefixes(drawn, case.page_size, box.get("prefix", PREFIXES))
    assume(prefix_of(requests, case.page_size) in box.get("prefix", PREFIXES))
    assume(all(allows(box.get("kv_length", _LENGTHS), request.kv) for request in requests))
    return requests


def _with_prefixes(requests: tuple[Request, ...], page_size: int, kinds: Allowed) -> tuple[Request, ...]:
    """Cut prefixes to whole pages, or off, where no others are allowed; there is one where there has to be."""
    if "part of a page" in kinds:
        return requests
    size = page_size if "whole pages" in kinds else 2**30
    least = 0 if "none" in kinds else size
    return tuple(
        replace(one, kv=one.query + max(least, (one.kv - one.query) // size * size)) if one.kv >= one.query else one
        for one in requests
    )


def prefix_of(requests: Sequence[Request], page_size: int) -> str:
    """Return which prefixes a batch has."""
    sizes = [max(0, request.kv - request.query) for request in requests]
    return PREFIXES[2 if any(size % page_size for size in sizes) else int(any(sizes))]


def _scores(requests: Sequence[Request]) -> int:
    return sum(request.query * request.kv for request in requests)


def _affords_heads(case: LatentAttentionCase, heads: int) -> bool:
    """Whether so many heads are worth what they cost."""
    width = case.rank if case.form == "absorbed" else case.rank // 4
    queries = heads * width * sum(request.query for request in case.requests)
    expansion = 0 if case.form == "absorbed" else heads * case.expansion_of_a_head
    return heads <= MOST_HEADS and heads * _scores(case.requests) <= SCORES and max(queries, expansion >> 8) <= (
        ROW_ELEMENTS
    )  # fmt: skip


@dataclass(frozen=True)
class LatentAttentionCase(Case):
    """One attention call, as sizes and a recipe."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request"),
    )
    form: str = axis(
        "absorbed: over latents; expanded: over keys and values of each head", FORMS, "absorbed", always=True,
        drawn=("absorbed", "expanded"),
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", range(1, 2**16 + 1), 16, drawn=lambda case: (16, 32) if case.far else (16, 128, 48, 64, 128),
        shown="page {}", always=True,
    )  # fmt: skip
    heads: int = axis(
        "query heads", _SIZES, 1, affordable=_affords_heads,
        drawn=lambda case: with_many(
            HEADS, (17, 32, 64, 128), beside_many=has_many_pages([one.kv for one in case.requests], case.page_size)
        ),
        shown="{} head(s)", always=True, region="several heads",
    )  # fmt: skip
    rank: int = axis("elements of a latent", _SIZES, 512, drawn=(512, 512, 512, 64, 80), shown="latent {}")
    rope_dim: int = axis("elements of a rotated key", _SIZES, 64, drawn=(64, 64, 64, 32, 16), shown="rope {}")
    nope_dim: int = axis(
        "elements of a key made from a latent", _SIZES, 128, drawn=(128, 128, 64, 40), shown="nope {}",
        applies=lambda case: case.form == "expanded",
    )  # fmt: skip
    value_dim: int = axis(
        "elements of a value made from a latent", _SIZES, 128, drawn=(128, 128, 64, 90, 256), shown="value {}",
        applies=lambda case: case.form == "expanded",
    )  # fmt: skip
    dtype: str = axis("dtype of queries and latents", ("bfloat16", "float16"), "bfloat16", always=True)
    padded_rows: int = axis(
        "query rows beyond the last request", range(2**16 + 1), 0, drawn=(0, 0, 1, 3), shown="{} padded row(s)"
    )
    spare_pages: int = part(0, range(2**16 + 1), drawn=(0, 1, 2), shown="{} spare page(s)")
    """Table columns beyond the longest request."""
    scale: float = axis(
        "factor of the scores, in units of 1/sqrt(elements of a key)", Numbers(1e-6, 1e6), 1.0, drawn=SCALES,
        shown="scale x{:g}",
    )  # fmt: skip
    recipe: str = axis("how latents and keys are made", RECIPES, "gaussian")
    poison: str = axis(
        "what lies in storage that must not be used: large finite values, or NaN", POISONS, "large", shown="NaN poison"
    )
    layout: str = axis("how the pages lie", LAYOUTS, "PA_BSND", shown="NZ pages", region="NZ pages")
    rows: str = rows.axis()
    merges: int = axis(
        "times that a result over some of the keys is rounded before it is merged: 1 where all are merged at once",
        range(17), 0, drawn=(0,), shown="{} merge(s)",
    )  # fmt: skip
    seed: int = seed()
    page_order: str = page_order_axis()

    drawn_first = ("form", "page_size", "requests", "rank", "rope_dim", "nope_dim", "value_dim")
    shown_first = ("requests", "form", "page_size", "heads")
    outliers = ("batch", "heads", "heads", "rank", "rope_dim", "nope_dim", "value_dim")

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

    @derived("what is cached before the new tokens: nothing, whole pages, or part of a page as well", PREFIXES)
    def prefix(self) -> str:
        """What is cached of the requests before their new tokens."""
        return prefix_of(self.requests, self.page_size)

    @derived("rows that see no key: none, or empty (requests of length 0)", BLIND_ROWS)
    def fully_masked_rows(self) -> str:
        """Whether there are rows of requests without tokens."""
        return "empty" if any(request.query > request.kv for request in self.requests) else "none"

    @property
    def tokens(self) -> int:
        """Query rows, padding included."""
        return sum(request.query for request in self.requests) + self.padded_rows

    @property
    def query_dim(self) -> int:
        """Elements of a query that are not rotated."""
        return self.rank if self.form == "absorbed" else self.nope_dim

    @property
    def expansion_of_a_head(self) -> int:
        """Products that keys and values of one head are made of."""
        return sum(request.kv for request in self.requests) * self.rank * (self.nope_dim + self.value_dim)

    @property
    def as_attention(self) -> SlidingAttentionCase:
        """The same batch as attention over one KV head, which says where its pages and borders are."""
        return SlidingAttentionCase(
            requests=self.requests,
            window=None,
            page_size=self.page_size,
            group=self.heads,
            head_dim=self.rank + self.rope_dim,
            value_head_dim=self.rank,
            dtype=self.dtype,
            padded_rows=self.padded_rows,
            spare_pages=self.spare_pages,
            scale=self.scale,
            seed=self.seed,
            page_order=self.page_order,
        )

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        yield from self.as_attention.problems()
        if any(request.query > request.kv > 0 for request in self.requests):
            yield "a request has more new tokens than tokens"
        if self.layout == "PA_NZ" and (self.rank % 16 or self.rope_dim % 16):
            yield f"dims of PA_NZ fill strips of 16, got {self.rank} and {self.rope_dim}"
        sizes = [self.heads * self.rank * (self.nope_dim + self.value_dim), self.heads * self.expansion_of_a_head >> 8]
        if self.form == "expanded" and max(sizes) > _MAX_ELEMENTS:
            yield f"the expansion would have more than {_MAX_ELEMENTS} elements"

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return self.form == "absorbed" or self.heads * self.expansion_of_a_head <= EXPANSION

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        several = [request for request in self.requests if request.query > 1]
        return {
            "query length 1": any(request.query == 1 for request in self.requests),
            "query length 2..8": any(request.query <= 8 for request in several),
            "mixed batch": 0 < len(several) < len(self.requests),
            "prefix": any(0 < request.query < request.kv for request in self.requests),
            "prefix of part of a page": any((request.kv - request.query) % self.page_size for request in several),
            "long history": any(request.kv > 8192 for request in self.requests),
            "request without rows": any(not request.query for request in self.requests),
            "partial page": any(request.kv % self.page_size for request in self.requests),
            "blind rows": self.fully_masked_rows != "none",
        }
