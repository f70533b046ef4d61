"""Attention over chosen keys: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.pattern import NOWHERE
from npudiff.judge.relations import Changed, relation, rows_taken
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.head_groups import has_many_pages, with_many
from npudiff.properties._shared.illegal import illegal_batch
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties._shared.new_tokens import draw_few, last_rows, one_of, renamed, row_coordinates, rows_of
from npudiff.properties._shared.slots import page_order_axis
from npudiff.properties.latent_attention.case import RECIPES, LatentAttentionCase
from npudiff.properties.latent_attention.inputs import build_inputs as build_latent
from npudiff.properties.sliding_attention.case import POISONS, SCALES, Request
from npudiff.reference.latent_attention import LatentAttentionInputs
from npudiff.reference.sparse_attention import SCALED, SparseAttentionInputs, seen_by, sparse_attention
from npudiff.text import listed

FORMS = ("16 bits", "int8")
"""What latents are. int8: with a scale per 128 elements."""

CHOICES = ("anywhere", "newest", "oldest", "fewer", "behind", "none for some")
"""Which keys a row sees: as many as there is room for, out of those that it may see. fewer: not even as many. behind:
some of those that are listed lie behind the row, and count for nothing. none for some: every third row sees none."""

ORDERS = ("scattered", "rising", "falling")
"""In which order they are listed."""

LONG = (*["no"] * 3, "draft", "deep")
"""How often one request has a long history, of which few keys are chosen: two cases in five."""

RANK, ROPE = 512, 64
"""Elements of a latent and of a rotated key; no operator has others."""

HEADS = (1, 2, 4, 8, 16, 3, 5, 12, 20, 32, 64, 128)

MANY_CHOSEN = 128
"""Chosen keys beyond which kernels go through them in parts."""

MOST_ROWS = 2**10
"""Rows of all heads up to which a case may have more heads."""

MOST_NEW = 600
"""New tokens of all requests that a case has where there is a choice: each has keys of its own."""

MOST_LISTED = 2**21
"""Tokens of all requests where there is a choice."""

MOST_KEYS = 2**14
"""Chosen keys of all rows up to which a case may list more."""

_LENGTHS = range(2**20 + 1)


def _draw_requests(choose: Chooser, box: Box, case: SparseAttentionCase) -> tuple[Request, ...]:
    return draw_few(choose, box, case.page_size, LONG, MOST_NEW, MOST_LISTED)


@dataclass(frozen=True)
class SparseAttentionCase(Case):
    """One attention call, as sizes and recipes."""

    requests: tuple[Request, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request", 12),
    )
    chosen: int = axis(
        "keys that are listed for a row, places behind the last included", range(1, 2**13 + 1), 1,
        drawn=(1, 2, 3, 8, 16, 17, 64, 128, 130, 511, 512, *(513, 600, 1024, 2048) * 2),
        affordable=lambda case, count: count * max(1, rows_of(case.requests)) <= MOST_KEYS,
        shown="{} chosen", always=True,
    )  # fmt: skip
    choice: str = axis("which they are", CHOICES, "anywhere", drawn=(*CHOICES[:1] * 2, *CHOICES), shown="{}")
    order: str = axis("in which order", ORDERS, "scattered", shown="{}")
    form: str = axis("what latents are", FORMS, "16 bits", shown="{} latents", region="int8")
    page_size: int = axis(
        "tokens per page", range(16, 1025, 16), 16, drawn=(16, 128, 48, 64, 128, 256), shown="page {}", always=True
    )
    heads: int = axis(
        "query heads", range(1, 129), 1,
        drawn=lambda case: with_many(HEADS, (32, 64, 80, 128), beside_many=case.chosen > MANY_CHOSEN
                                     or has_many_pages([one.kv for one in case.requests], case.page_size)),
        affordable=lambda case, heads: heads * max(1, rows_of(case.requests)) <= MOST_ROWS
        and heads * max(1, rows_of(case.requests)) * case.chosen <= 8 * MOST_KEYS,
        shown="{} head(s)", always=True, region="several heads",
    )  # fmt: skip
    dtype: str = axis("dtype of queries and latents", ("bfloat16", "float16"), "bfloat16", always=True)
    padded_rows: int = axis(
        "query rows beyond the last request", range(2**16 + 1), 0, drawn=(0, 0, 1, 3), shown="{} padded row(s)"
    )
    spare_pages: int = part(0, range(2**16 + 1), drawn=(0, 1, 2), shown="{} spare page(s)")
    """Table columns beyond the longest request."""
    scale: float = axis(
        "factor of the scores, in units of 1/sqrt(elements of a key)", (1.0, 0.5, 4.0), 1.0, drawn=SCALES,
        shown="scale x{:g}",
    )  # fmt: skip
    recipe: str = axis("how latents and keys are made", RECIPES, "gaussian")
    poison: str = axis(
        "what lies in storage that must not be used: large finite values, or NaN", POISONS, "large", shown="NaN poison",
        applies=lambda case: case.form != "int8",
    )  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()
    page_order: str = page_order_axis()

    drawn_first = ("page_size", "requests", "chosen")
    shown_first = ("requests", "chosen", "choice", "order")
    outliers = ("heads", "batch")

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
    def as_latent(self) -> LatentAttentionCase:
        """The same batch over all of its keys."""
        return LatentAttentionCase(
            requests=self.requests, page_size=self.page_size, heads=self.heads, rank=RANK, rope_dim=ROPE,
            dtype=self.dtype, padded_rows=self.padded_rows, spare_pages=self.spare_pages, scale=self.scale,
            recipe=self.recipe, poison="large" if self.form == "int8" else self.poison, rows=self.rows, seed=self.seed,
            page_order=self.page_order,
        )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        yield from self.as_latent.problems()
        if any(request.query > request.kv for request in self.requests):
            yield "a request has more new tokens than tokens"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "query length 1": any(one.query == 1 for one in self.requests),
            "more keys than chosen": any(one.kv > self.chosen for one in self.requests),
            "fewer keys than chosen": any(one.kv < self.chosen for one in self.requests),
            "several tiles": self.chosen > 512 and any(one.kv > 512 for one in self.requests),
            "long history": any(one.kv > 8192 for one in self.requests),
        }


def build_inputs(case: SparseAttentionCase) -> SparseAttentionInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    latent = build_latent(case.as_latent)
    pool, scales = latent.pool, None
    if case.form == "int8":
        blocks = pool.key.to(torch.float32).reshape(*pool.key.shape[:-1], -1, SCALED)
        scales = blocks.abs().amax(dim=-1).clamp(min=1e-6) / 127
        narrow = (blocks / scales.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8).flatten(-2)
        pool = replace(pool, key=narrow)
    return SparseAttentionInputs(
        query=latent.query,
        query_rope=latent.query_rope,
        pool=pool,
        indices=_indices(case),
        query_lengths=latent.query_lengths,
        kv_lengths=latent.kv_lengths,
        scale=latent.scale,
        scales=scales,
    )


def _indices(case: SparseAttentionCase) -> torch.Tensor:
    """What is listed for each row; of rows of padding, what must not be looked up."""
    total = rows_of(case.requests) + case.padded_rows
    indices = torch.full((total, 1, case.chosen), -1, dtype=torch.int32)
    indices[rows_of(case.requests) :] = 2**30
    stream, row = Stream(case.seed, "choices"), 0
    for request in case.requests:
        for position in range(request.kv - request.query, request.kv):
            if case.choice == "none for some" and row % 3 == 0:
                row += 1
                continue
            listed_keys = _listed(case, stream, position + 1, request.kv)
            indices[row, 0, : len(listed_keys)] = torch.tensor(listed_keys, dtype=torch.int32)
            row += 1
    return indices


def _listed(case: SparseAttentionCase, stream: Stream, visible: int, total: int) -> Sequence[int]:
    """Keys of one row that may see so many."""
    count = min(case.chosen, visible)
    if case.choice == "fewer":
        count = max(1, count // 2)
    words = stream.random_uint64(2 * count + 2).tolist()
    if case.choice in ("newest", "oldest") or count == visible:
        first = visible - count if case.choice == "newest" else 0
        keys = list(range(first, first + count))
    else:  # a stretch of equal parts has one of each, so that none comes twice
        edges = [place * visible // count for place in range(count + 1)]
        keys = [low + word % (high - low) for low, high, word in zip(edges, edges[1:], words, strict=False)]
    if case.choice == "behind" and total > visible and count > 1:
        keys[count // 2] = visible + words[-1] % (total - visible)
    if case.order == "rising":
        return sorted(keys)
    if case.order == "falling":
        return sorted(keys, reverse=True)
    return [keys[place] for place in stream.permutation(count)]


def coordinates(inputs: SparseAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to ``output`` or ``lse``; a padded row is nowhere."""
    tokens, heads, rank = inputs.query.shape
    named = row_coordinates(tokens, inputs.query_lengths, inputs.kv_lengths)
    seen = torch.full((tokens,), NOWHERE)
    for place in range(sum(inputs.query_lengths)):
        seen[place] = len(seen_by(inputs.indices[place, 0], int(named["kv position"][place])))
    named["keys seen"] = seen
    more = (1,) * (2 if output == "output" else 1)
    found = {name: value.view(-1, *more) for name, value in named.items()}
    found["head"] = torch.arange(heads).view(1, -1, *more[1:])
    return found | ({"dim": torch.arange(rank).view(1, 1, -1)} if output == "output" else {})


def _other_order(inputs: SparseAttentionInputs, case: SparseAttentionCase) -> SparseAttentionInputs:
    """The same keys, listed in another order."""
    indices = inputs.indices.clone()
    for row in range(rows_of(case.requests)):
        count = int((indices[row, 0] >= 0).sum())
        order = torch.tensor(Stream(case.seed, f"order {row}").permutation(count), dtype=torch.int64)
        indices[row, 0, :count] = indices[row, 0, order]
    return replace(inputs, indices=indices)


def _more_room(inputs: SparseAttentionInputs, case: SparseAttentionCase) -> Changed[SparseAttentionInputs]:
    """More places, which nobody uses."""
    wider = torch.nn.functional.pad(inputs.indices, (0, 3), value=-1)
    return Changed(replace(inputs, indices=wider), case=replace(case, chosen=case.chosen + 3))


def _alone(inputs: SparseAttentionInputs, case: SparseAttentionCase) -> Changed[SparseAttentionInputs]:
    """One of the requests without the others."""
    one, own = one_of(case.requests, case.seed)
    request = case.requests[one]
    smaller = _of_rows(inputs, own, [one], (request.query,), (request.kv,))
    return Changed(smaller, rows_taken(own), case=replace(case, requests=(request,), padded_rows=0))


def _of_rows(
    inputs: SparseAttentionInputs, own: list[int], kept: Sequence[int], new: tuple[int, ...], total: tuple[int, ...]
) -> SparseAttentionInputs:
    return replace(
        inputs, query=inputs.query[own], query_rope=inputs.query_rope[own], indices=inputs.indices[own],
        pool=replace(inputs.pool, block_table=inputs.pool.block_table[list(kept)]), query_lengths=new, kv_lengths=total,
    )  # fmt: skip


def _last_row_alone(inputs: SparseAttentionInputs, case: SparseAttentionCase) -> Changed[SparseAttentionInputs]:
    """A decode of the last row of each request."""
    decodes, own = last_rows(case.requests)
    smaller = _of_rows(inputs, own, range(len(decodes)), tuple(one.query for one in decodes), inputs.kv_lengths)
    return Changed(smaller, rows_taken(own), case=replace(case, requests=decodes, padded_rows=0))


def _pages_renamed(inputs: SparseAttentionInputs, case: SparseAttentionCase) -> SparseAttentionInputs:
    pool = inputs.pool
    table, old = renamed(pool.block_table, len(pool.key), case.seed)
    moved = replace(pool, key=pool.key[old], value=pool.value[old], block_table=table)
    return replace(inputs, pool=moved, scales=None if inputs.scales is None else inputs.scales[old])


def dense(inputs: SparseAttentionInputs) -> LatentAttentionInputs:
    """Return the same call over all keys."""
    return LatentAttentionInputs(
        inputs.query, inputs.query_rope, inputs.pool, inputs.query_lengths, inputs.kv_lengths, inputs.scale
    )


def _sizes(model: Model) -> Box | None:
    if model.indexer is None or not model.latent:
        return None
    (layer,) = model.layers
    if layer.head_dim != f"{RANK}/{ROPE}":
        return None
    return {"heads": (layer.group,), "chosen": (model.indexer.count,), "page_size": (PAGE_SIZE,)}


component = Component(
    name="sparse_attention",
    summary="latent attention over keys that an indexer has chosen for each query, out of a paged cache",
    case_type=SparseAttentionCase,
    outputs=("output", "lse"),
    inputs=build_inputs,
    reference=sparse_attention,
    illegal=illegal_batch("pool", lambda inputs: inputs.pool.page_size),
    coordinates=coordinates,
    highlighted_region="more keys than chosen",
    relations=(
        relation("order_does_not_matter", "the order in which keys are listed does not matter", _other_order,
                 within={"chosen": range(2, 2**13 + 1)}),
        relation("room_does_not_matter", "places behind the last key do not matter", _more_room,
                 within={"chosen": range(1, 2**13 - 3)}),
        relation("company_does_not_matter", "a request's company in the batch does not matter", _alone,
                 within={"batch": range(2, 4097)}),
        relation("decode_equals_last_row", "a decode is the last row of a longer query", _last_row_alone,
                 within={"query_length": range(2, 2**20 + 1)}, needs={"query_length": (1,)}),
        relation("page_names_do_not_matter", "renaming pages changes no bit", _pages_renamed, bits=True),
    ),
    profiles=of_models(_sizes),
    example_ratio=0.5,
    baselines=BASELINES["sparse_attention"],
)  # fmt: skip
