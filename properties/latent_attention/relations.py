"""What must hold between runs of one implementation, without knowing the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.judge.relations import Changed, relation, rows_taken
from npudiff.model.component import Comparison, NotApplicable, Property, Subject
from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.sliding_attention.case import Request
from npudiff.reference.latent_attention import LatentAttentionInputs, UpProjections


def starts_of(case: LatentAttentionCase) -> list[int]:
    """Return the first query row of each request, and the number of real rows."""
    starts = [0]
    for request in case.requests:
        starts.append(starts[-1] + request.query)
    return starts


def taken(
    inputs: LatentAttentionInputs,
    case: LatentAttentionCase,
    kept: Sequence[int],
    requests: Sequence[Request],
    rows: Sequence[int],
) -> Changed[LatentAttentionInputs]:
    """Some rows of some requests over the same pool, as a call of their own, against the same rows of the whole."""
    smaller = replace(
        inputs,
        query=inputs.query[list(rows)],
        query_rope=inputs.query_rope[list(rows)],
        pool=replace(inputs.pool, block_table=inputs.pool.block_table[list(kept)]),
        query_lengths=tuple(request.query for request in requests),
        kv_lengths=tuple(request.kv for request in requests),
    )
    return Changed(smaller, rows_taken(rows), case=replace(case, requests=tuple(requests), padded_rows=0))


def _last_rows(case: LatentAttentionCase, counts: Sequence[int]) -> list[int]:
    ends = starts_of(case)[1:]
    return [row for end, count in zip(ends, counts, strict=True) for row in range(end - count, end)]


def _last_row_alone(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    """A decode of the last row of each request."""
    counts = [min(request.query, 1) for request in case.requests]
    requests = [Request(count, request.kv) for count, request in zip(counts, case.requests, strict=True)]
    if requests == list(case.requests):
        raise NotApplicable("no request has more than one new token")
    return taken(inputs, case, range(len(requests)), requests, _last_rows(case, counts))


def _cuts(case: LatentAttentionCase) -> list[int]:
    """How many rows of each request are the first chunk; as many of each where all have as many rows."""
    points = Stream(case.seed, "chunks").integers(0, 2**16, len(case.requests))
    points = points if case.ragged else [points[0]] * len(points)
    cuts = [1 + point % (one.query - 1) if one.query > 1 else one.query
            for point, one in zip(points, case.requests, strict=True)]  # fmt: skip
    if all(cut == request.query for cut, request in zip(cuts, case.requests, strict=True)):
        raise NotApplicable("no request has more than one new token")
    return cuts


def _first_chunk(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    """The first rows of each request, before the tokens behind them were there."""
    cuts, starts = _cuts(case), starts_of(case)
    requests = [Request(cut, max(0, one.kv - one.query + cut)) for cut, one in zip(cuts, case.requests, strict=True)]
    rows = [start + row for start, cut in zip(starts, cuts, strict=False) for row in range(cut)]
    return taken(inputs, case, range(len(requests)), requests, rows)


def _second_chunk(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    """The other rows, over a prefix that the first chunk has made longer; requests that are done have left."""
    cuts, starts = _cuts(case), starts_of(case)
    kept = [index for index, cut in enumerate(cuts) if cut < case.requests[index].query]
    requests = [Request(case.requests[index].query - cuts[index], case.requests[index].kv) for index in kept]
    rows = [row for index in kept for row in range(starts[index] + cuts[index], starts[index + 1])]
    return taken(inputs, case, kept, requests, rows)


def _prefix_recomputed(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    """The whole prompt as new tokens: rows behind the prefix are as they were when it was cached."""
    requests = [Request(one.kv if one.query else 0, one.kv) for one in case.requests]
    if requests == list(case.requests) or case.fully_masked_rows != "none":
        raise NotApplicable("no request has a prefix, or one has no tokens")
    cold = replace(case, requests=tuple(requests), padded_rows=0)
    rows = _last_rows(cold, [one.query for one in case.requests])
    own = range(starts_of(case)[-1])
    query, rope = (
        torch.full((cold.tokens, *part.shape[1:]), 0.25, dtype=part.dtype) for part in (inputs.query, inputs.query_rope)
    )
    query[rows], rope[rows] = inputs.query[list(own)], inputs.query_rope[list(own)]
    lengths = tuple(request.query for request in requests)
    whole = replace(inputs, query=query, query_rope=rope, query_lengths=lengths)
    return Changed(whole, rows_taken(own), rows_taken(rows), case=cold)


def _request_alone(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    """One of the requests without the others."""
    with_rows = [index for index, request in enumerate(case.requests) if request.query]
    if len(case.requests) < 2 or not with_rows:
        raise NotApplicable("the batch has one request, or no rows")
    chosen = with_rows[Stream(case.seed, "alone").integers(0, len(with_rows), 1)[0]]
    starts = starts_of(case)
    rows = range(starts[chosen], starts[chosen + 1])
    return taken(inputs, case, [chosen], [case.requests[chosen]], rows)


def _batch_reordered(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    order, starts = Stream(case.seed, "order").permutation(len(case.requests)), starts_of(case)
    rows = [row for index in order for row in range(starts[index], starts[index + 1])]
    return taken(inputs, case, order, [case.requests[index] for index in order], rows)


def _pages_renamed(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> LatentAttentionInputs:
    pool = inputs.pool
    names = torch.tensor([0, *(1 + page for page in Stream(case.seed, "rename").permutation(len(pool.key) - 1))])
    old = torch.argsort(names)
    table = names[pool.block_table.to(torch.int64)].to(torch.int32)
    return replace(inputs, pool=replace(pool, key=pool.key[old], value=pool.value[old], block_table=table))


def _padding_added(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> Changed[LatentAttentionInputs]:
    """Padded rows, and columns of the table that no request has."""
    real = range(starts_of(case)[-1])
    query, rope = (
        torch.cat([part, torch.full_like(part[:1], 77.0).expand(2, -1, -1)])
        for part in (inputs.query, inputs.query_rope)
    )
    pool = replace(inputs.pool, block_table=torch.nn.functional.pad(inputs.pool.block_table, (0, 2)))
    padded = replace(case, padded_rows=case.padded_rows + 2)
    return Changed(
        replace(inputs, query=query, query_rope=rope, pool=pool), rows_taken(real), rows_taken(real), case=padded
    )


def _other_poison(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> LatentAttentionInputs:
    """Everything that must not be read is another number, of the other sign."""
    pool = inputs.pool
    used = torch.zeros(len(pool.key), pool.page_size, dtype=torch.bool)
    for row, request in enumerate(case.requests):
        if request.query:
            tokens = torch.arange(request.kv)
            pages = pool.block_table[row].to(torch.int64)[tokens // case.page_size]
            used[pages, tokens % case.page_size] = True
    where = used[:, None, None, :, None] if pool.layout == "PA_NZ" else used[:, :, None, None]
    key, value = (torch.where(where, cache, torch.full_like(cache, -333.0)) for cache in (pool.key, pool.value))
    return replace(inputs, pool=replace(pool, key=key, value=value))


def _same_again(inputs: LatentAttentionInputs, case: LatentAttentionCase) -> LatentAttentionInputs:
    del case  # any
    return inputs


def chosen_elements(case: LatentAttentionCase) -> tuple[UpProjections, torch.Tensor]:
    """Up-projections that choose elements of a latent, some with another sign, and which a value is made of.

    No product of these rounds: keys and values have the bits of latents.
    """
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float16
    key = torch.zeros(case.heads, case.nope_dim, case.rank, dtype=dtype)
    value = torch.zeros(case.heads, case.rank, case.value_dim, dtype=dtype)
    columns = torch.empty(case.heads, case.value_dim, dtype=torch.int64)
    for head in range(case.heads):
        stream = Stream(case.seed, f"chosen {head}")
        order = torch.tensor(stream.permutation(case.rank))[: case.nope_dim]
        signs = 1 - 2 * torch.tensor(stream.integers(0, 2, len(order)))
        key[head, range(len(order)), order] = signs.to(dtype)
        columns[head] = torch.tensor(stream.integers(0, case.rank, case.value_dim))
        value[head, columns[head], range(case.value_dim)] = 1.0
    return UpProjections(key, value), columns


def _absorbed_equals_expanded(subject: Subject, case: LatentAttentionCase) -> Comparison:
    """Choose elements of latents as keys and values: then both forms are of the same numbers, and neither rounds them.

    An absorbed output holds the elements that an expanded one is made of.
    """
    if case.nope_dim > case.rank:
        raise NotApplicable("a key has more elements than a latent")
    other = replace(case, form="absorbed", merges=0)
    subject.require(other, "the absorbed form")
    up, columns = chosen_elements(case)
    expanded = replace(subject.component.inputs(case), up=up)
    query = torch.einsum("thn,hnr->thr", expanded.query.float(), up.key.float()).to(expanded.query.dtype)
    absorbed = replace(expanded, query=query, up=None, roundings=replace(expanded.roundings, merges=0))
    one, two = subject.run(expanded), dict(subject.run(absorbed))
    where = columns.expand(len(query), -1, -1)
    bounds = bounds_of(subject.expected(expanded))
    others = bounds_of(subject.expected(absorbed))
    two["output"], others["output"] = two["output"].gather(2, where), others["output"].gather(2, where)
    either = {name: torch.maximum(bound, others[name]) for name, bound in bounds.items()}
    return compare_runs(either, one, two, "expanded against absorbed")


_FEW = {"query_length": range(2, 513), "kv_length": range(1, 1025)}
_COMPANY = {"batch": range(2, 4097)}

RELATIONS: tuple[Property[LatentAttentionCase], ...] = (
    relation("decode_equals_last_row", "decode of one token equals the last row of several", _last_row_alone,
             within={"query_length": range(2, 513)}, needs={"query_length": (1,)}),
    relation("first_chunk_equals_one_shot", "the first chunk is as in one shot", _first_chunk, within=_FEW),
    relation("second_chunk_equals_one_shot", "the second chunk, behind a cached prefix, is as in one shot",
             _second_chunk, within=_FEW),
    relation("prefix_equals_recomputed", "a cached prefix is as one that is computed again", _prefix_recomputed,
             within={"kv_length": range(1, 257)}, needs={"query_length": range(9, 2**20)}),
    Property("absorbed_equals_expanded", "the absorbed form equals the expanded one", _absorbed_equals_expanded,
             within={"form": ("expanded",), "kv_length": range(1025)}, needs={"form": ("absorbed",)}),
    relation("page_names_do_not_matter", "renaming pages changes no bit", _pages_renamed, bits=True),
    relation("batch_order_does_not_matter", "the order of the batch does not matter", _batch_reordered,
             within=_COMPANY),
    relation("company_does_not_matter", "a request's company in the batch does not matter", _request_alone,
             within=_COMPANY),
    relation("padding_does_not_matter", "added padding does not matter", _padding_added),
    relation("poison_changes_no_bit", "what must not be read changes no bit", _other_poison, bits=True),
    relation("repeats_are_identical", "the same call twice gives the same bits", _same_again, bits=True),
)  # fmt: skip
