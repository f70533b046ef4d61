"""A vocabulary over ranks as both backends split it: embedding, logits and the most likely token.

sglang ``layers/vocab_parallel_embedding.py``; vllm-ascend ``ops/vocab_parallel_embedding.py``, ``sample/sampler.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from npudiff import Target, implementation
from npudiff.reference.vocabulary_parallel import VocabularyPart

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """The ids of one rank: its part of the vocabulary and of the added one, and where their rows begin."""

    start: int
    end: int
    added_start: int
    added_end: int
    padded: int
    """Rows of the first part, padding included: those of the added part stand behind them."""
    padded_added: int
    """Rows of the added part, padding included."""


def part_of(inputs: VocabularyPart, rank: int | None = None, multiple: int | None = None) -> Part:
    """Return which ids a rank has, or this one."""
    rank = inputs.rank if rank is None else rank
    multiple = inputs.multiple if multiple is None else multiple
    ranks = dist.get_world_size()
    known, total = inputs.vocabulary, inputs.vocabulary + inputs.added
    padded = (known + multiple - 1) // multiple * multiple // ranks
    padded_added = (inputs.added + multiple - 1) // multiple * multiple // ranks
    start, added = rank * padded, known + rank * padded_added
    return Part(
        min(start, known), min(start + padded, known), min(added, total), min(added + padded_added, total),
        padded, padded_added,
    )  # fmt: skip


def gathered_rows(inputs: VocabularyPart, rows: torch.Tensor, ranks: int) -> torch.Tensor:
    """Return the tokens of all ranks, each padded to the most that a rank has, ``[ranks * most, ...]``."""
    most = max(inputs.counts)
    own = rows.new_zeros(most, *rows.shape[1:])
    own[: len(rows)] = rows
    every = rows.new_empty(ranks * most, *rows.shape[1:])
    dist.all_gather_into_tensor(every, own)
    return every


def padded_rows(inputs: VocabularyPart, rows: torch.Tensor) -> torch.Tensor:
    """Return rows in the places that they have for collectives: those of ranks, each padded to the same number."""
    ranks = dist.get_world_size()
    if inputs.given == "chunks":
        return gathered_rows(inputs, rows, ranks)
    if inputs.returned == "whole":
        return rows
    padded = rows.new_zeros(ranks * max(inputs.counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def without_padding(inputs: VocabularyPart, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of all tokens without what ranks were padded by."""
    if inputs.given == "whole":
        return rows
    blocks = rows.view(len(inputs.counts), -1, *rows.shape[1:])
    return torch.cat([block[:count] for block, count in zip(blocks, inputs.counts, strict=True)])


def masked_ids(ids: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of the own table, 0 for ids of others, and which those are."""
    known = (ids >= part.start) & (ids < part.end)
    added = (ids >= part.added_start) & (ids < part.added_end)
    offset = part.start * known + (part.added_start - part.padded) * added
    mine = known | added
    return mine * (ids - offset), ~mine


def local_embedding(inputs: VocabularyPart, ids: torch.Tensor, part: Part) -> torch.Tensor:
    """Return rows of the own table, and zeros for ids of others."""
    places, others = masked_ids(ids, part)
    rows = torch.nn.functional.embedding(places.long(), inputs.weight)
    return rows.masked_fill_(others.unsqueeze(-1), 0)


def reduced(inputs: VocabularyPart, rows: torch.Tensor) -> torch.Tensor:
    """Add up the rows of all ranks, and return those that this one is asked for."""
    if inputs.returned == "whole":
        dist.all_reduce(rows)
        return without_padding(inputs, rows)
    own = rows.new_empty(len(rows) // dist.get_world_size(), rows.shape[1])
    dist.reduce_scatter_tensor(own, rows)
    return own[: inputs.counts[inputs.rank]]


@implementation("vocabulary_parallel", on_device=True)
def masked_embedding(inputs: VocabularyPart, target: Target) -> Outputs:
    """Masked lookup, then all-reduce, or reduce-scatter under sequence parallelism."""
    ids = padded_rows(inputs, inputs.ids)
    return {"embedded": reduced(inputs, local_embedding(inputs, ids, part_of(inputs)))}


CAPACITY = 16
"""Buffers that stay have a multiple of so many rows."""


@implementation(
    "vocabulary_parallel", supports={"given": ("chunks",), "returned": ("chunks",)}, on_device=True, stateful=True
)
def embedding_of_static_buffers() -> Callable[[VocabularyPart, Target], Outputs]:
    """Embedding that is parallel over data-parallel ranks: ids and rows go through buffers that stay where they are."""
    buffers: dict[object, tuple[torch.Tensor, ...]] = {}

    def looked_up(inputs: VocabularyPart, target: Target) -> Outputs:
        ranks, hidden = dist.get_world_size(), inputs.weight.shape[1]
        capacity = -(-max(*inputs.counts, 1) // CAPACITY) * CAPACITY
        key = (ranks, capacity, hidden, inputs.ids.dtype, inputs.weight.dtype)
        if key not in buffers:
            ids, weight = inputs.ids, inputs.weight
            buffers[key] = (
                ids.new_zeros(capacity), ids.new_empty(ranks * capacity),
                weight.new_empty(ranks * capacity, hidden), weight.new_empty(capacity, hidden),
            )  # fmt: skip
        ids, every, rows, own = buffers[key]
        ids.zero_()
        ids[: len(inputs.ids)].copy_(inputs.ids)
        dist.all_gather_into_tensor(every, ids)
        rows.copy_(local_embedding(inputs, every, part_of(inputs)))
        dist.reduce_scatter_tensor(own, rows)
        return {"embedded": own[: len(inputs.ids)].clone()}

    return looked_up


def local_logits(inputs: VocabularyPart) -> torch.Tensor:
    """Return logits of all tokens for the own rows, padding included."""
    return torch.nn.functional.linear(padded_rows(inputs, inputs.states), inputs.weight)


def columns_in_order(inputs: VocabularyPart, logits: torch.Tensor) -> torch.Tensor:
    """Return columns of the ranks one after the other in the order of ids: without padding, added ones last."""
    own, ranks = logits.shape[1] // dist.get_world_size(), range(dist.get_world_size())
    parts = [part_of(inputs, rank) for rank in ranks]
    known = [torch.arange(one.end - one.start) + rank * own for rank, one in zip(ranks, parts, strict=True)]
    added = [
        torch.arange(one.added_end - one.added_start) + rank * own + one.padded
        for rank, one in zip(ranks, parts, strict=True)
    ]
    return logits[:, torch.cat([*known, *added]).to(logits.device)]


def of_all_columns(inputs: VocabularyPart, logits: torch.Tensor) -> torch.Tensor:
    """Cut padding: a slice where nothing was added, as backends do it."""
    return columns_in_order(inputs, logits) if inputs.added else logits[:, : inputs.vocabulary].contiguous()


def side_by_side(logits: torch.Tensor) -> torch.Tensor:
    """Gather ``[tokens, own]`` along the columns, ``[tokens, ranks * own]``."""
    ranks, (tokens, own) = dist.get_world_size(), logits.shape
    every = logits.new_empty(ranks * tokens, own)
    dist.all_gather_into_tensor(every, logits.contiguous())
    return every.view(ranks, tokens, own).movedim(0, 1).reshape(tokens, ranks * own)


def exchanged(logits: torch.Tensor) -> torch.Tensor:
    """Exchange ``[tokens, own]`` for ``[tokens / ranks, ranks * own]``."""
    ranks, own = dist.get_world_size(), logits.shape[1]
    blocks = logits.contiguous().view(ranks, len(logits) // ranks, own)
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks)
    return received.permute(1, 0, 2).reshape(-1, ranks * own)


def with_most_likely(logits: torch.Tensor) -> Outputs:
    """Return logits and the first of the largest ones."""
    return {"logits": logits, "tokens": logits.argmax(dim=-1)}


@implementation("vocabulary_parallel", supports={"returned": ("whole",)}, on_device=True)
def gathered_logits(inputs: VocabularyPart, target: Target) -> Outputs:
    """Own product, all-gather along the columns, cut, arg-max."""
    return with_most_likely(without_padding(inputs, of_all_columns(inputs, side_by_side(local_logits(inputs)))))


@implementation("vocabulary_parallel", supports={"returned": ("chunks",)}, on_device=True)
def exchanged_logits(inputs: VocabularyPart, target: Target) -> Outputs:
    """Own product of all tokens, all-to-all, cut, arg-max of the own tokens."""
    logits = of_all_columns(inputs, exchanged(local_logits(inputs)))
    return with_most_likely(logits[: inputs.counts[inputs.rank]])


def own_maximum(inputs: VocabularyPart, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logit of the own ids, and the first id that has it; -inf and 0 where there is no id."""
    part = part_of(inputs)
    mine = torch.cat([
        torch.arange(part.end - part.start), torch.arange(part.added_end - part.added_start) + part.padded,
    ]).to(logits.device)  # fmt: skip
    ids = torch.cat([torch.arange(part.start, part.end), torch.arange(part.added_start, part.added_end)])
    if not len(mine):
        return logits.new_full((len(logits),), -torch.inf), torch.zeros(len(logits), dtype=torch.int64).to(mine.device)
    value, place = logits[:, mine].max(dim=-1)
    return value, ids.to(logits.device)[place]


def largest_of_ranks(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the id of the largest value of ``[tokens, ranks]``, the lowest of those that have it."""
    largest = values == values.amax(dim=1, keepdim=True)
    return ids.masked_fill(~largest, torch.iinfo(torch.int64).max).amin(dim=1)


@implementation("vocabulary_parallel", on_device=True)
def reduced_arg_max(inputs: VocabularyPart, target: Target) -> Outputs:
    """Each rank's largest logit and its id are gathered, in place of all logits."""
    value, ids = own_maximum(inputs, local_logits(inputs))
    tokens = largest_of_ranks(side_by_side(value.unsqueeze(1)), side_by_side(ids.unsqueeze(1)))
    return {"tokens": own_rows(inputs, tokens)}


def own_rows(inputs: VocabularyPart, rows: torch.Tensor) -> torch.Tensor:
    """Return what a rank is asked for of rows of all tokens, which every rank has."""
    if inputs.returned == "whole":
        return without_padding(inputs, rows)
    first = inputs.rank * (len(rows) // dist.get_world_size())
    return rows[first : first + inputs.counts[inputs.rank]]


@implementation("vocabulary_parallel", on_device=True)
def replicated_table(inputs: VocabularyPart, target: Target) -> Outputs:
    """Every rank gathers the whole table, and computes its tokens by itself."""
    ranks, (own, hidden) = dist.get_world_size(), inputs.weight.shape
    every = inputs.weight.new_empty(ranks * own, hidden)
    dist.all_gather_into_tensor(every, inputs.weight)
    table = columns_in_order(inputs, every.T).T.contiguous()
    ids, states = (own_rows(inputs, padded_rows(inputs, rows)) for rows in (inputs.ids, inputs.states))
    inside = (ids >= 0) & (ids < len(table))
    embedded = table[ids.long().clamp(0, len(table) - 1)].masked_fill(~inside.unsqueeze(1), 0)
    return {"embedded": embedded, **with_most_likely(states @ table.T)}
