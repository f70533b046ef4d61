"""What must hold between runs of one implementation, without knowing the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, Outputs, relation, rows_taken
from npudiff.model.component import NotApplicable, Property
from npudiff.properties._shared.new_tokens import last_rows, one_of, renamed, starts_of
from npudiff.properties.quantised_kv_attention.case import QuantisedKvAttentionCase
from npudiff.properties.sliding_attention.case import Request
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs

_POWERS = {"key": 4.0, "value": 2.0}


def _taken(
    inputs: QuantisedKvAttentionInputs,
    case: QuantisedKvAttentionCase,
    kept: Sequence[int],
    requests: Sequence[Request],
    rows: Sequence[int],
) -> Changed[QuantisedKvAttentionInputs]:
    """Some rows of some requests over the same pool, as a call of their own."""
    smaller = replace(
        inputs,
        query=inputs.query[list(rows)],
        pool=replace(inputs.pool, block_table=inputs.pool.block_table[list(kept)]),
        query_lengths=tuple(request.query for request in requests),
        kv_lengths=tuple(request.kv for request in requests),
    )
    return Changed(smaller, rows_taken(rows), case=replace(case, requests=tuple(requests), padded_rows=0))


def _last_row_alone(
    inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase
) -> Changed[QuantisedKvAttentionInputs]:
    """A decode of the last row of each request."""
    decodes, own = last_rows(case.requests)
    return _taken(inputs, case, range(len(decodes)), decodes, own)


def _alone(inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase) -> Changed[QuantisedKvAttentionInputs]:
    """One of the requests without the others."""
    one, own = one_of(case.requests, case.seed)
    return _taken(inputs, case, [one], [case.requests[one]], own)


def _reordered(
    inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase
) -> Changed[QuantisedKvAttentionInputs]:
    """Requests in another order."""
    order, starts = Stream(case.seed, "order").permutation(case.batch), starts_of(case.requests)
    own = [row for index in order for row in range(starts[index], starts[index + 1])]
    return _taken(inputs, case, order, [case.requests[index] for index in order], own)


def _pages_renamed(inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase) -> QuantisedKvAttentionInputs:
    """Pages under other names, and numbers of their tokens with them."""
    pool = inputs.pool
    table, old = renamed(pool.block_table, len(pool.key), case.seed)

    def moved(side: Antiquant) -> Antiquant:
        if not side.of_tokens:
            return side
        return replace(side, scale=side.scale[old], offset=None if side.offset is None else side.offset[old])

    moved_pool = replace(pool, key=pool.key[old], value=pool.value[old], block_table=table)
    return replace(inputs, pool=moved_pool, of_keys=moved(inputs.of_keys), of_values=moved(inputs.of_values))


def read_slots(inputs: QuantisedKvAttentionInputs) -> torch.Tensor:
    """Return which slots some row sees, bool ``[pages, page_size]``."""
    pool = inputs.pool
    used = torch.zeros(len(pool.key), pool.page_size, dtype=torch.bool)
    for row, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        if new:
            tokens = torch.arange(total)
            used[pool.block_table[row].to(torch.int64)[tokens // pool.page_size], tokens % pool.page_size] = True
    return used


def _other_poison(inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase) -> QuantisedKvAttentionInputs:
    """Integers and scales that must not be read are others."""
    del case  # any
    pool, used = inputs.pool, read_slots(inputs)
    where = used[:, None, None, :, None] if pool.layout == "PA_NZ" else used[:, :, None, None]
    key, value = (torch.where(where, cache, torch.full_like(cache, -99)) for cache in (pool.key, pool.value))

    def other(side: Antiquant) -> Antiquant:
        if not side.of_tokens:
            return side
        seen = used if side.granularity == "token" else used.unsqueeze(1)
        return replace(side, scale=torch.where(seen, side.scale, 0.125))

    changed = replace(pool, key=key, value=value)
    return replace(inputs, pool=changed, of_keys=other(inputs.of_keys), of_values=other(inputs.of_values))


def _larger_scales(
    inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase
) -> Changed[QuantisedKvAttentionInputs]:
    """Scales of keys times 4 under scores over 4, and scales of values times 2: outputs are twice as large."""
    if inputs.query.dtype == torch.float16:
        raise NotApplicable("what is twice as large may not be a float16")
    del case  # any
    sides = (replace(side, scale=side.scale * by) for side, by in zip(
        (inputs.of_keys, inputs.of_values), _POWERS.values(), strict=True
    ))  # fmt: skip
    of_keys, of_values = sides
    larger = replace(inputs, of_keys=of_keys, of_values=of_values, scale=inputs.scale / _POWERS["key"])

    def halved(outputs: Outputs) -> Outputs:
        return {name: one / _POWERS["value"] if name == "output" else one for name, one in outputs.items()}

    return Changed(larger, part=halved)


def _as_channels(
    inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase
) -> Changed[QuantisedKvAttentionInputs]:
    """A number for each element of a head, which is that of the cache or the head."""
    shape = (case.kv_heads, case.head_dim)

    def spread(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.view(-1, 1).expand(shape).contiguous()

    sides = [
        Antiquant("channel", spread(side.scale), None if side.offset is None else spread(side.offset))
        for side in (inputs.of_keys, inputs.of_values)
    ]
    return Changed(replace(inputs, of_keys=sides[0], of_values=sides[1]), case=replace(case, form="channel"))


def _padding_added(
    inputs: QuantisedKvAttentionInputs, case: QuantisedKvAttentionCase
) -> Changed[QuantisedKvAttentionInputs]:
    """Padded rows, and columns of the table that no request has."""
    real = range(starts_of(case.requests)[-1])
    query = torch.cat([inputs.query, torch.full_like(inputs.query[:1], 77.0).expand(2, -1, -1)])
    pool = replace(inputs.pool, block_table=torch.nn.functional.pad(inputs.pool.block_table, (0, 2)))
    padded = replace(case, padded_rows=case.padded_rows + 2)
    return Changed(replace(inputs, query=query, pool=pool), rows_taken(real), rows_taken(real), case=padded)


_COMPANY = {"batch": range(2, 4097)}

RELATIONS: tuple[Property[QuantisedKvAttentionCase], ...] = (
    relation("decode_equals_last_row", "a decode is the last row of a longer query", _last_row_alone,
             within={"query_length": range(2, 2**20 + 1)}, needs={"query_length": (1,)}),
    relation("page_names_do_not_matter", "renaming pages changes no bit", _pages_renamed, bits=True),
    relation("batch_order_does_not_matter", "the order of the batch does not matter", _reordered, within=_COMPANY),
    relation("company_does_not_matter", "a request's company in the batch does not matter", _alone, within=_COMPANY),
    relation("padding_does_not_matter", "added padding does not matter", _padding_added),
    relation("poison_changes_no_bit", "what must not be read changes no bit", _other_poison, bits=True),
    relation("larger_scales_make_larger_outputs", "scales of powers of two pass through", _larger_scales),
    relation("one_number_is_that_of_each_channel", "a number per cache or head is one of each of its channels",
             _as_channels, within={"form": ("tensor", "head")}, needs={"form": ("channel",)}),
)  # fmt: skip
