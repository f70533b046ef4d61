"""Attention whose history is split over ranks: decode over shards of a cache, and prefill in head and tail chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import attended
from npudiff.reference.attention_tile import AttentionRoundings
from npudiff.reference.bounds import EXPONENTIAL_ERROR, Expected, accumulation_error, unit_roundoff
from npudiff.reference.cache_reader import CacheReader
from npudiff.reference.paged_kv import PagedKV, check_pages
from npudiff.reference.views import moved_inputs

STAGES = ("decode", "prefill")
"""decode: each rank has some tokens of the history in its own pages, and some of the query heads. prefill: each rank
has the whole history, and the new tokens are to be shared out among the ranks."""


@dataclass(frozen=True)
class ContextParallelInputs:
    """What all ranks together are given.

    A request with ``q`` new and ``L`` total tokens has a history of ``L - q`` tokens. Row ``r`` stands at position
    ``L - q + r`` and sees the keys at positions up to its own. A request of length 0 is a padded row of the batch,
    or several: it sees nothing, and its keys are written nowhere.
    """

    stage: str
    """One of ``STAGES``."""
    query: torch.Tensor
    """``[tokens, heads, head_dim]``, bfloat16 or float16: the new tokens of all requests, one after the other. In a
    decode rank ``r`` has the heads ``r * heads / ranks`` and on."""
    key: torch.Tensor
    value: torch.Tensor
    """``[tokens, kv_heads, head_dim]``: those of the new tokens, which every rank knows."""
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    """``[ranks, pages, page_size, kv_heads, head_dim]``: the pools of the ranks, with the history. What lies elsewhere
    is seen if it is read."""
    block_table: torch.Tensor
    """int32 ``[ranks, batch, width]``: the pages of each request in the pool of each rank, those for new tokens too.
    Page 0 is nobody's, as in both backends: what pads a batch may be written there."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens of each request."""
    interleave: int
    """Tokens that follow each other on one rank before the next one has its turn; divides the page size."""
    scale: float
    """Factor of the scores."""

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.key_cache.shape[0]

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.key_cache.shape[2]

    @property
    def sharded(self) -> bool:
        """Whether each rank has a part of the history, and of the heads."""
        return self.stage == "decode"


@dataclass(frozen=True)
class ContextParallelPart:
    """What one rank is given."""

    stage: str
    """One of ``STAGES``."""
    rank: int
    ranks: int
    """The number of this rank, and how many there are."""
    query: torch.Tensor
    """``[tokens, heads / ranks, head_dim]`` in a decode, in a prefill all heads; bfloat16 or float16."""
    key: torch.Tensor
    value: torch.Tensor
    """``[tokens, kv_heads, head_dim]``: those of all new tokens."""
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    """``[pages, page_size, kv_heads, head_dim]``: the pool of this rank, with its part of the history. What lies
    elsewhere is seen if it is read."""
    block_table: torch.Tensor
    """int32 ``[batch, width]``: the pages of each request in this pool, those for new tokens too. Page 0 is nobody's,
    as in both backends: what pads a batch may be written there."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens of each request, over all ranks."""
    interleave: int
    """Tokens that follow each other on one rank before the next one has its turn; divides the page size."""
    scale: float
    """Factor of the scores."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.key_cache.shape[1]

    def to(self, device: str | torch.device) -> ContextParallelPart:
        """Return the same inputs on ``device``; the pools are copies, so that a write leaves these as they are."""
        return moved_inputs(self, device, copies=("key_cache", "value_cache"))


def part_of_rank(inputs: ContextParallelInputs, rank: int) -> ContextParallelPart:
    """Return what one rank is given."""
    query = inputs.query.tensor_split(inputs.ranks, dim=1)[rank] if inputs.sharded else inputs.query
    return ContextParallelPart(
        stage=inputs.stage,
        rank=rank,
        ranks=inputs.ranks,
        query=query,
        key=inputs.key,
        value=inputs.value,
        key_cache=inputs.key_cache[rank],
        value_cache=inputs.value_cache[rank],
        block_table=inputs.block_table[rank],
        query_lengths=inputs.query_lengths,
        kv_lengths=inputs.kv_lengths,
        interleave=inputs.interleave,
        scale=inputs.scale,
    )


def rows_of_ranks(inputs: ContextParallelInputs, output: str) -> tuple[int, ...]:
    """Return how many rows of an output each rank returns: one for each new token."""
    del output
    return (len(inputs.query),) * inputs.ranks


def history_lengths(inputs: ContextParallelInputs) -> list[int]:
    """Return the tokens of each request that lie in pools before; 0 for padded rows."""
    return [max(0, total - new) for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)]


def history(inputs: ContextParallelInputs, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values ``[tokens, kv_heads, head_dim]`` of the history of a request, read from the pools.

    Token ``t`` of a decode lies on rank ``t // interleave % ranks``, as the ``t // (interleave * ranks) * interleave +
    t % interleave``-th token of that rank; that of a prefill lies on every rank, of which the first is read.
    """
    count = history_lengths(inputs)[request]
    token = torch.arange(count)
    owner, local = torch.zeros_like(token), token
    if inputs.sharded:
        owner = token // inputs.interleave % inputs.ranks
        local = token // (inputs.interleave * inputs.ranks) * inputs.interleave + token % inputs.interleave
    page = inputs.block_table[owner, request, local // inputs.page_size].to(torch.int64)
    where = owner, page, local % inputs.page_size
    return inputs.key_cache[where], inputs.value_cache[where]


def context_parallel(inputs: ContextParallelInputs) -> dict[str, Expected]:
    """Return plain attention over all tokens of each request, with bounds, as the ranks have to return it.

    Returns
    -------
    dict
        One rank after the other along axis 0. Decode: ``output`` ``[ranks * tokens, heads / ranks, head_dim]`` in the
        query's dtype and ``lse`` float32 ``[ranks * tokens, heads / ranks]``, each rank its own heads. Prefill: the
        same of all heads, which every rank returns, in the order of the inputs.

    Raises
    ------
    ValueError
        If shapes contradict each other.

    Notes
    -----
    A device attends to parts of the keys, each of which it rounds to the query's dtype, and merges them all at once by
    float32 log-sum-exps: one more rounding for each part, together as large as one of the whole, and sums over ranks
    (``AttentionRoundings.merges``). In a decode of one rank there is nothing to merge; a prefill has its own chunks and
    what lies before them to merge on one rank, too.
    """
    _validate(inputs)
    requests = [_whole(inputs, request) for request in range(len(inputs.kv_lengths))]
    several = inputs.ranks > 1
    found = attended(
        inputs.query,
        inputs.query_lengths,
        inputs.kv_lengths,
        lambda request, total: CacheReader(requests[request], 0, total),
        inputs.query.shape[2],
        scale=inputs.scale,
        roundings=AttentionRoundings(merges=int(several or not inputs.sharded)),
    )
    if several:
        found = {name: _merged_over_ranks(name, expected, inputs) for name, expected in found.items()}
    return {name: _of_ranks(expected, inputs) for name, expected in found.items()}


def _whole(inputs: ContextParallelInputs, request: int) -> PagedKV:
    """All tokens of one request as a pool of one page."""
    start, new, total = sum(inputs.query_lengths[:request]), inputs.query_lengths[request], inputs.kv_lengths[request]
    rows = slice(start, start + (new if total else 0))
    keys, values = (
        torch.cat([old, added[rows]]).unsqueeze(0)
        for old, added in zip(history(inputs, request), (inputs.key, inputs.value), strict=True)
    )
    return PagedKV(keys, values, torch.zeros(1, 1, dtype=torch.int32))


def _merged_over_ranks(name: str, expected: Expected, inputs: ContextParallelInputs) -> Expected:
    """Widen a bound by what float32 arithmetic over ranks may lose.

    The output is a sum over ranks, relative to all weights times absolute values; the bound has a whole rounding of
    these to the query's dtype, so that it grows by what the two are as parts of each other. The log-sum-exp is the
    logarithm of such a sum, of exponentials that are computed.
    """
    lost = accumulation_error(inputs.ranks)
    if name == "output":
        return replace(expected, bound=expected.bound * (1 + lost / unit_roundoff(inputs.query.dtype)))
    more = torch.where(expected.bound > 0, lost + EXPONENTIAL_ERROR, 0.0)  # a row that sees nothing stays exact
    return replace(expected, bound=expected.bound + more)


def _of_ranks(expected: Expected, inputs: ContextParallelInputs) -> Expected:
    """What is expected of all ranks, one after the other."""

    def dealt(whole: torch.Tensor) -> torch.Tensor:
        parts = whole.tensor_split(inputs.ranks, dim=1) if inputs.sharded else [whole] * inputs.ranks
        return torch.cat(list(parts))

    return of_all(expected, dealt)


def of_all(expected: Expected, change: Callable[[torch.Tensor], torch.Tensor]) -> Expected:
    """Return an expectation whose tensors are all changed alike."""
    directions = {name: change(direction) for name, direction in expected.directions.items()}
    return replace(expected, value=change(expected.value), bound=change(expected.bound), directions=directions)


def _validate(inputs: ContextParallelInputs) -> None:
    if inputs.stage not in STAGES:
        raise ValueError(f"stage is one of {', '.join(STAGES)}, got {inputs.stage}")
    tokens, heads, dim = inputs.query.shape
    kv_heads = inputs.key.shape[1]
    if heads % kv_heads or (inputs.sharded and heads % inputs.ranks):
        raise ValueError(f"{heads} query heads are not shared by {kv_heads} KV heads and {inputs.ranks} ranks")
    if inputs.key.shape != (tokens, kv_heads, dim) or inputs.value.shape != inputs.key.shape:
        raise ValueError(f"keys and values of new tokens must be ({tokens}, {kv_heads}, {dim})")
    if inputs.key_cache.shape[3:] != inputs.key.shape[1:] or inputs.value_cache.shape != inputs.key_cache.shape:
        raise ValueError(f"pools must hold keys of ({kv_heads}, {dim}), got {tuple(inputs.key_cache.shape)}")
    if inputs.interleave < 1 or inputs.page_size % inputs.interleave:
        raise ValueError(f"pages of {inputs.page_size} tokens do not hold whole stretches of {inputs.interleave}")
    if sum(inputs.query_lengths) != tokens or len(inputs.kv_lengths) != len(inputs.query_lengths):
        raise ValueError(f"query_lengths must add up to {tokens} rows, got {sum(inputs.query_lengths)}")
    if any(0 < total < new for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        raise ValueError("a request has more new tokens than tokens")
    for rank in range(inputs.ranks):
        own = [local_length(total, rank, inputs) for total in inputs.kv_lengths]
        check_pages(inputs.block_table[rank], own, own, inputs.page_size, inputs.key_cache.shape[1])


def local_length(length: int, rank: int, inputs: ContextParallelInputs) -> int:
    """Return how many of the first tokens of a request lie on a rank, by counting whole rounds and what is left."""
    if not inputs.sharded:
        return length
    rounds, left = divmod(length, inputs.interleave * inputs.ranks)
    return rounds * inputs.interleave + min(max(left - rank * inputs.interleave, 0), inputs.interleave)
