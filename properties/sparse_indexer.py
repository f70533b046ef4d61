"""The choice of keys for sparse attention: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, Outputs, relation, rows_taken
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.illegal import illegal_lengths, illegal_pages, read_by_batch
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties._shared.new_tokens import draw_few, last_rows, one_of, renamed, row_coordinates
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.properties._shared.slots import page_order_axis
from npudiff.properties.sliding_attention.case import POISONS, Request, SlidingAttentionCase
from npudiff.properties.sliding_attention.pages import plan_pages
from npudiff.reference.sparse_indexer import SparseIndexerInputs, sparse_indexer
from npudiff.text import listed

FORMS = ("16 bits", "int8")
"""What queries and keys are. int8: with a scale per token and head."""

RECIPES = ("gaussian", "needle", "alike", "silent")
"""needle: one key in eight is what the queries look for. alike: one key in four is that of the token before, so that
scores are equal. silent: most products are negative, and most scores 0."""

WEIGHTS = ("as queries", "float32")

DIM = 128
"""Elements of a query; operators have no others."""

LONG = (*["no"] * 7, *["draft"] * 3)
MOST_NEW = 300
"""New tokens of all requests that a case has where there is a choice."""

MOST_KEYS = 2**18
"""Tokens of all requests; every one has a key of its own, since equal ones have equal scores."""

MOST_PRODUCTS = 2**22
"""Products of heads, rows and keys up to which a case may have more heads."""

_LENGTHS = range(2**20 + 1)


def _draw_requests(choose: Chooser, box: Box, case: SparseIndexerCase) -> tuple[Request, ...]:
    return draw_few(choose, box, case.page_size, LONG, MOST_NEW, MOST_KEYS)


def _products(case: SparseIndexerCase) -> int:
    return sum(one.query * one.kv for one in case.requests)


@dataclass(frozen=True)
class SparseIndexerCase(Case):
    """One call, as sizes and recipes."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request"),
    )
    count: int = axis(
        "keys that are chosen for a row", range(1, 2**13 + 1), 1,
        drawn=(1, 2, 3, 8, 16, 17, 40, 64, 128, 130, 511, 512, 513, 600, 1024, 2048), shown="top {}", always=True,
    )  # fmt: skip
    heads: int = axis(
        "heads", range(1, 65), 1, drawn=(1, 2, 4, 8, 16, 3, 5, 17, 20, 32, 64),
        affordable=lambda case, heads: heads * _products(case) <= MOST_PRODUCTS, shown="{} head(s)", always=True,
        region="several heads",
    )  # fmt: skip
    form: str = axis("what queries and keys are", FORMS, "16 bits", shown="{} keys", region="int8")
    weights: str = axis(
        "dtype of the weights of heads", WEIGHTS, "as queries", applies=lambda case: case.form != "int8",
        shown="{} weights",
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", range(16, 1025, 16), 16, drawn=(16, 128, 48, 64, 128, 256), shown="page {}", always=True
    )
    dtype: str = axis(
        "dtype of queries and keys", ("bfloat16", "float16"), "bfloat16", applies=lambda case: case.form != "int8",
        always=True,
    )  # fmt: skip
    recipe: str = axis("how queries and keys are made", RECIPES, "gaussian", region="{}")
    padded_rows: int = axis(
        "query rows beyond the last request", range(2**16 + 1), 0, drawn=(0, 0, 1, 3), shown="{} padded row(s)"
    )
    spare_pages: int = part(0, range(2**16 + 1), drawn=(0, 1, 2), shown="{} spare page(s)")
    """Table columns beyond the longest request."""
    poison: str = axis(
        "what lies in storage that must not be used: large finite values, or NaN", POISONS, "large", shown="NaN poison",
        applies=lambda case: case.form != "int8",
    )  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()
    page_order: str = page_order_axis()

    drawn_first = ("page_size", "requests")
    shown_first = ("requests", "count")
    outliers = ("heads", "batch", "count")

    @derived("number of requests", range(1, 4097))
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
    def tokens(self) -> int:
        """Query rows, padding included."""
        return sum(request.query for request in self.requests) + self.padded_rows

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of queries and keys that are not int8."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float16

    @property
    def as_attention(self) -> SlidingAttentionCase:
        """The same batch as attention over one KV head, which says where its pages are."""
        return SlidingAttentionCase(
            requests=self.requests, window=None, page_size=self.page_size, group=self.heads, head_dim=DIM,
            value_head_dim=DIM, dtype=self.dtype, padded_rows=self.padded_rows, spare_pages=self.spare_pages,
            seed=self.seed, page_order=self.page_order,
        )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        yield from self.as_attention.problems()
        if any(request.query > request.kv for request in self.requests):
            yield "a request has more new tokens than tokens"
        if self.heads * _products(self) > 2**34:
            yield f"there would be more than {2**34} products"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "query length 1": any(one.query == 1 for one in self.requests),
            "more keys than chosen": any(one.kv > self.count for one in self.requests),
            "fewer keys than chosen": any(one.kv < self.count for one in self.requests),
            "as many keys as chosen": any(one.kv == self.count for one in self.requests),
            "long history": any(one.kv > 8192 for one in self.requests),
        }


def build_inputs(case: SparseIndexerCase) -> SparseIndexerInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    plan = plan_pages(case.as_attention, shared_pages=False)
    query = Stream(case.seed, "query").normal((case.tokens, case.heads, DIM), torch.float32)
    key = Stream(case.seed, "key").normal((plan.pages, case.page_size, 1, DIM), torch.float32)
    direction = Stream(case.seed, "direction").normal((DIM,), torch.float32)
    if case.recipe == "needle":
        query = query + direction
        key[:, ::8] += direction
    if case.recipe == "alike":
        key[:, 1::4] = key[:, : key.shape[1] - 1 : 4][:, : key[:, 1::4].shape[1]]
    if case.recipe == "silent":
        query, key = query + 3 * direction, key - direction
    weights = Stream(case.seed, "weights").normal((case.tokens, case.heads), torch.float32)
    table = with_row_stride(torch.from_numpy(plan.table), case.rows)
    lengths = (tuple(one.query for one in case.requests), tuple(one.kv for one in case.requests))
    if case.form == "int8":
        narrow, scale = _quantised(query)
        keys, key_scale = _quantised(key)
        return SparseIndexerInputs(
            narrow, weights.to(torch.float16), keys, table, *lengths, case.count, query_scale=scale, key_scale=key_scale
        )
    poison = torch.nan if case.poison == "nan" else 256.0
    for page in plan.stale:
        key[page] = poison
    for row, span in enumerate(plan.live):
        if span:
            last = int(plan.table[row][(span.last - 1) // case.page_size])
            key[last, (span.last - 1) % case.page_size + 1 :] = poison
    dtype = case.torch_dtype
    return SparseIndexerInputs(
        with_row_stride(query.to(dtype), case.rows),
        with_row_stride(weights.to(torch.float32 if case.weights == "float32" else dtype), case.rows, GAPS[1]),
        key.to(dtype), table, *lengths, case.count,
    )  # fmt: skip


def _quantised(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 with a scale per vector, float16."""
    scale = (numbers.abs().amax(dim=-1) / 127).to(torch.float16)
    narrow = (numbers / scale.float().unsqueeze(-1)).round().clamp(-127, 127)
    return narrow.to(torch.int8), scale


def coordinates(inputs: SparseIndexerInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to ``chosen`` or ``listed``; a padded row is nowhere."""
    named = row_coordinates(len(inputs.query), inputs.query_lengths, inputs.kv_lengths)
    found = {name: value.unsqueeze(1) for name, value in named.items()}
    last = torch.arange(inputs.longest + 1 if output == "chosen" else 2)
    return found | {"key" if output == "chosen" else "count": last.unsqueeze(0)}


def _of_rows(
    inputs: SparseIndexerInputs, own: list[int], kept: Sequence[int], new: tuple[int, ...], total: tuple[int, ...]
) -> SparseIndexerInputs:
    scale = None if inputs.query_scale is None else inputs.query_scale[own]
    return replace(inputs, query=inputs.query[own], weights=inputs.weights[own], query_scale=scale,
                   block_table=inputs.block_table[list(kept)], query_lengths=new, kv_lengths=total)  # fmt: skip


def _alone(inputs: SparseIndexerInputs, case: SparseIndexerCase) -> Changed[SparseIndexerInputs]:
    """One of the requests without the others."""
    one, own = one_of(case.requests, case.seed)
    request = case.requests[one]

    def cut(outputs: Outputs) -> Outputs:
        taken = {name: output[own] for name, output in outputs.items()}
        return {**taken, "chosen": torch.cat([taken["chosen"][:, : request.kv], taken["chosen"][:, -1:]], dim=1)}

    smaller = _of_rows(inputs, own, [one], (request.query,), (request.kv,))
    return Changed(smaller, cut, case=replace(case, requests=(request,), padded_rows=0))


def _last_row_alone(inputs: SparseIndexerInputs, case: SparseIndexerCase) -> Changed[SparseIndexerInputs]:
    """A decode of the last row of each request."""
    decodes, own = last_rows(case.requests)
    smaller = _of_rows(inputs, own, range(len(decodes)), tuple(one.query for one in decodes), inputs.kv_lengths)
    return Changed(smaller, rows_taken(own), case=replace(case, requests=decodes, padded_rows=0))


def _pages_renamed(inputs: SparseIndexerInputs, case: SparseIndexerCase) -> SparseIndexerInputs:
    table, old = renamed(inputs.block_table, len(inputs.key), case.seed)
    scale = None if inputs.key_scale is None else inputs.key_scale[old]
    return replace(inputs, key=inputs.key[old], key_scale=scale, block_table=table)


def _sizes(model: Model) -> Box | None:
    indexer = model.indexer
    if indexer is None or indexer.dim != DIM:
        return None
    return {"heads": (indexer.heads,), "count": (indexer.count,), "page_size": (PAGE_SIZE,)}


component = Component(
    name="sparse_indexer",
    summary="which keys a query attends to: the best by weighted sums of rectified products, out of a paged cache",
    case_type=SparseIndexerCase,
    outputs=("chosen", "listed"),
    inputs=build_inputs,
    reference=sparse_indexer,
    illegal=(
        *illegal_pages("block_table", "key", lambda inputs: inputs.key.shape[1], read_by_batch),
        *illegal_lengths("block_table", lambda inputs: inputs.key.shape[1]),
    ),
    coordinates=coordinates,
    highlighted_region="more keys than chosen",
    relations=(
        relation("company_does_not_matter", "a request's company in the batch does not matter", _alone,
                 within={"batch": range(2, 4097)}),
        relation("decode_equals_last_row", "a decode is the last row of a longer query", _last_row_alone,
                 within={"query_length": range(2, 2**20 + 1)}, needs={"query_length": (1,)}),
        relation("page_names_do_not_matter", "renaming pages changes no choice", _pages_renamed, bits=True),
    ),
    profiles=of_models(_sizes),
    example_ratio=0.5,
    baselines=BASELINES["sparse_indexer"],
)  # fmt: skip
