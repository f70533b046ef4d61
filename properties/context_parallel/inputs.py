"""From a case to tensors: requests whole, and dealt to the pools of the ranks, with poison wherever nothing lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.properties._shared.slots import page_names
from npudiff.properties.context_parallel.case import ContextParallelCase, Request
from npudiff.reference.context_parallel import ContextParallelInputs, history

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

POISON = 4096.0
"""What values hold that must not be read: finite, exact in 16 bits, and far above what any right output holds."""

SCORE = 100.0
"""Scores of hot keys, and of cold ones with another sign: float32 has no exponential of it."""

Histories = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Whole:
    """Tokens as they are without ranks."""

    query: torch.Tensor
    """``[tokens, heads, head_dim]``."""
    key: torch.Tensor
    value: torch.Tensor
    """``[tokens, kv_heads, head_dim]``, of the new tokens."""
    histories: Histories
    """Keys and values of each request before its new tokens."""
    poison: torch.Tensor
    """``[head_dim]``: a key that every query likes, where queries like any."""


def build_inputs(case: ContextParallelCase) -> ContextParallelInputs:
    """Build the inputs of a case."""
    return dealt(_whole(case), case)


def whole_of(inputs: ContextParallelInputs, case: ContextParallelCase) -> Whole:
    """Return the tokens of inputs without ranks, to deal them otherwise."""
    histories = [history(inputs, request) for request in range(len(inputs.kv_lengths))]
    return Whole(inputs.query, inputs.key, inputs.value, histories, _poison_key(case))


def _poison_key(case: ContextParallelCase) -> torch.Tensor:
    longest = max(request.kv for request in case.requests)
    return (_direction(case) * _likings(case, longest).abs().max()).to(DTYPES[case.dtype])


def _direction(case: ContextParallelCase) -> torch.Tensor:
    """What queries and the keys that they like have in common, of unit length."""
    direction = Stream(case.seed, "direction").normal((case.head_dim,), torch.float32)
    unit: torch.Tensor = direction / direction.norm()
    return unit


def _strength(case: ContextParallelCase) -> float:
    """Length of queries along the direction: a key of length 1 then has a score of this over the root of the dim."""
    if case.recipe == "gaussian":
        return 0.0
    if case.recipe == "needle":
        return math.sqrt(case.head_dim)
    return math.sqrt(SCORE * math.sqrt(case.head_dim))


def _likings(case: ContextParallelCase, total: int) -> torch.Tensor:
    """Length of each key of a request along the direction, ``[total]``."""
    token = torch.arange(total)
    strength = torch.full((total,), _strength(case))
    if case.recipe == "hot":
        return strength
    if case.recipe == "cold":
        return -strength
    step = case.interleave if case.sharded else max(1, -(-total // (2 * case.ranks)))
    if case.recipe == "uneven":
        return torch.where(token // step % 2 == 0, strength, -strength)
    if case.recipe == "needle":
        border = (token % step == 0) | (token % step == step - 1) if step > 1 else token % case.ranks == 0
        return torch.where(border | (token == total - 1), math.log(max(total, 2)), 0.0)
    return torch.zeros(total)


def _whole(case: ContextParallelCase) -> Whole:
    dtype, direction = DTYPES[case.dtype], _direction(case)
    lengths = case.batch_lengths
    tokens = sum(request.query for request in lengths)
    query = Stream(case.seed, "query").normal((tokens, case.heads, case.head_dim), torch.float32)
    query = (query + direction * _strength(case)).to(dtype)
    keys, values, histories = [], [], []
    for place, request in enumerate(lengths):
        key, value = _tokens(case, place, request, direction)
        old = request.kv - request.query if request.kv else 0
        histories.append((key[:old].to(dtype), value[:old].to(dtype)))
        keys.append(key[old:])
        values.append(value[old:])
    poison = _poison_key(case)
    return Whole(query, torch.cat(keys).to(dtype), torch.cat(values).to(dtype), histories, poison)


def _tokens(
    case: ContextParallelCase, place: int, request: Request, direction: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all tokens of a request; those of a padded one are poison."""
    shape = (request.kv or request.query, case.kv_heads, case.head_dim)
    if not request.kv:
        return _poison_key(case).float().expand(shape), torch.full(shape, POISON)
    key = Stream(case.seed, f"key {place}").normal(shape, torch.float32)
    value = Stream(case.seed, f"value {place}").normal(shape, torch.float32)
    return key + direction * _likings(case, request.kv)[:, None, None], value


def dealt(whole: Whole, case: ContextParallelCase) -> ContextParallelInputs:
    """Lay whole requests into the pools of a case's ranks; pages of each rank have names in an order of its own."""
    lengths, size = case.batch_lengths, case.page_size
    shape = (case.ranks, case.pages, size, case.kv_heads, case.head_dim)
    value_cache = torch.full(shape, POISON, dtype=whole.query.dtype)
    key_cache = whole.poison.expand(shape).contiguous()
    width = 1 + max(-(-case.tokens_of(0, request.kv) // size) for request in lengths)
    table = torch.zeros(case.ranks, len(lengths), width, dtype=torch.int32)
    for rank in range(case.ranks):
        names = iter(page_names(f"pages {rank}", case.seed, case.pages, case.page_order))
        for row, request in enumerate(lengths):
            own = [next(names) for _ in range(-(-case.tokens_of(rank, request.kv) // size))]
            table[rank, row, : len(own)] = torch.tensor(own, dtype=torch.int32)
            _lay(whole.histories[row], rank, table[rank, row], case, (key_cache[rank], value_cache[rank]))
    return ContextParallelInputs(
        stage=case.stage,
        query=with_row_stride(whole.query.contiguous(), case.rows),
        key=with_row_stride(whole.key.contiguous(), case.rows, GAPS[1]),
        value=with_row_stride(whole.value.contiguous(), case.rows, GAPS[2]),
        key_cache=key_cache,
        value_cache=value_cache,
        block_table=table,
        query_lengths=tuple(request.query for request in lengths),
        kv_lengths=tuple(request.kv for request in lengths),
        interleave=case.interleave,
        scale=1 / math.sqrt(case.head_dim),
    )


def _lay(
    tokens: tuple[torch.Tensor, torch.Tensor],
    rank: int,
    pages: torch.Tensor,
    case: ContextParallelCase,
    pools: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Put the tokens of a history that are a rank's into its pool, one after the other."""
    count = torch.arange(len(tokens[0]))
    mine = count[count // case.interleave % case.ranks == rank] if case.sharded else count
    place = torch.arange(len(mine))
    where = pages[place // case.page_size].long(), place % case.page_size
    for pool, states in zip(pools, tokens, strict=True):
        pool[where] = states[mine]
