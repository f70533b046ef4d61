"""Latent attention over keys that an indexer has chosen for each query, out of a paged cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import SCALE
from npudiff.reference.attention_tile import AttentionRoundings, AttentionTile
from npudiff.reference.bounds import Expected, underflow_step, unit_roundoff
from npudiff.reference.cache_reader import CacheReader, Stretch
from npudiff.reference.paged_kv import PagedKV, check_pages
from npudiff.reference.views import moved

TILE = 512
"""Chosen keys that a kernel takes in one go."""

KEYS_TOGETHER = 2**12
"""Keys of rows that are computed together."""

ROUNDED_FACTORS = False
"""Whether a kernel may rescale its sums, tile after tile, by a factor that is rounded to the queries' dtype. That the
kernels for A2 and A3 lose as much is inferred; those that were read multiply what rounding leaves of a factor into the
weights of the next tile."""

SCALED = 128
"""Elements of a latent that share a scale, where latents are int8."""


@dataclass(frozen=True)
class SparseAttentionInputs:
    """One absorbed call of one layer, whose rows see the keys that are listed for them.

    Row ``r`` of a request with ``q`` new and ``L`` total tokens stands at position ``L - q + r``.
    """

    query: torch.Tensor
    """``[tokens, heads, rank]``, bfloat16 or float16. Rows beyond ``sum(query_lengths)`` are padding, of which nothing
    is said."""
    query_rope: torch.Tensor
    """``[tokens, heads, rope_dim]``."""
    pool: PagedKV
    """Latents as keys, and rotated keys as values, of one head. Where latents are int8 the keys are ``[pages,
    page_size, 1, rank]`` of int8."""
    indices: torch.Tensor
    """int32 ``[tokens, 1, chosen]``: positions of keys, all different, in any order; -1 behind the last. One behind the
    position of its row counts for nothing."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    scale: float
    """Factor of the scores."""
    scales: torch.Tensor | None = None
    """float32 ``[pages, page_size, 1, rank / 128]``: of int8 latents."""

    def to(self, device: str | torch.device) -> SparseAttentionInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        names = ("query", "query_rope", "indices", "scales")
        tensors = {name: moved(one, device) for name in names if (one := getattr(self, name)) is not None}
        return replace(self, pool=self.pool.to(device), **tensors)  # type: ignore[arg-type]


def sparse_attention(inputs: SparseAttentionInputs) -> dict[str, Expected]:
    """Return attention outputs and log-sum-exp, with bounds.

    A row attends as in latent attention, to the chosen keys alone (DeepSeek-AI, "DeepSeek-V3.2", 2025, eq. 2). One
    without any has output 0 and an LSE of minus infinity.

    Returns
    -------
    dict
        ``output``: ``[tokens, heads, rank]`` in the query's dtype; ``lse``: float32 ``[tokens, heads]``.

    Raises
    ------
    ValueError
        If shapes contradict each other, or an index names no token of its request.

    Notes
    -----
    Latents that are int8 times a scale are rounded to the query's dtype. ``ROUNDED_FACTORS`` is what no source settles.
    """
    _validate(inputs)
    query = torch.cat([inputs.query, inputs.query_rope], dim=-1)
    tokens, heads, rank = inputs.query.shape
    value, bound, by_scale = (torch.zeros(tokens, heads, rank, dtype=torch.float64) for _ in range(3))
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64)
    lse_bound = torch.full_like(lse, math.inf)
    lse_bound[: sum(inputs.query_lengths)] = 0.0  # of rows that see nothing; nothing is said of padding
    bound[sum(inputs.query_lengths) :] = math.inf
    for some, count in _alike(inputs):
        # Each row has keys of its own, as each KV head has: rows that see as many keys are heads of one row.
        reader = ChosenReader(inputs, some)
        roundings = AttentionRoundings(merges=(-(-count // TILE) - 1) * ROUNDED_FACTORS)
        places = [one.row for one in some]
        together = query[places].reshape(1, -1, query.shape[-1])
        tile = AttentionTile(reader, together, count - 1, inputs.scale, None, None, roundings)
        parts = [part.reshape(len(some), heads, *part.shape[2:]) for part in tile.attend()]
        value[places], bound[places], lse[places], lse_bound[places], by_scale[places] = parts
    return {
        "output": Expected(value, bound, inputs.query.dtype, directions={SCALE: by_scale}),
        "lse": Expected(lse, lse_bound, torch.float32),
    }


@dataclass(frozen=True)
class SeenRow:
    """A row of queries, and the keys that it sees."""

    row: int
    request: int
    keys: torch.Tensor
    """int64 ``[keys]``."""


def _alike(inputs: SparseAttentionInputs) -> Iterator[tuple[list[SeenRow], int]]:
    """Yield rows that see as many keys as each other, as far as their keys fit into memory together."""
    rows: list[SeenRow] = []
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            rows.append(SeenRow(len(rows), request, seen_by(inputs.indices[len(rows), 0], position)))
    rows.sort(key=lambda one: len(one.keys))
    for count, group in itertools.groupby(rows, key=lambda one: len(one.keys)):
        alike, most = list(group), max(1, KEYS_TOGETHER // max(1, count))
        for first in range(0, len(alike) if count else 0, most):
            yield alike[first : first + most], count


def seen_by(indices: torch.Tensor, position: int) -> torch.Tensor:
    """Return the keys that a row of indices chooses for a query at a position, int64."""
    chosen = indices.to(torch.int64)
    ends = (chosen < 0).nonzero()
    chosen = chosen[: int(ends[0])] if len(ends) else chosen
    return chosen[chosen <= position]


class ChosenReader(CacheReader):
    """Reads the keys of several rows, as many of each; every row is a KV head."""

    def __init__(self, inputs: SparseAttentionInputs, rows: Sequence[SeenRow]) -> None:
        self._inputs = inputs
        pool, requests = inputs.pool, torch.tensor([one.request for one in rows])
        keys = torch.stack([one.keys for one in rows], dim=1)
        page = pool.block_table[requests].to(torch.int64).t().gather(0, keys // pool.page_size)
        self._slots = page * pool.page_size + keys % pool.page_size  # [keys, rows]
        super().__init__(pool, 0, len(keys))

    def sizes(self) -> tuple[int, int, int]:
        """See ``CacheReader``."""
        own = self._inputs
        return self._slots.shape[1], own.query.shape[2] + own.query_rope.shape[2], own.query.shape[2]

    def stored(self, first: int, last: int) -> Stretch:
        """See ``CacheReader``."""
        slots = self._slots[first:last]
        latents, ropes = (_rows(part, slots) for part in (self._inputs.pool.key, self._inputs.pool.value))
        if self._inputs.scales is None:
            return Stretch(torch.cat([latents, ropes], dim=-1), latents)
        scales = _rows(self._inputs.scales, slots).to(torch.float64).repeat_interleave(SCALED, dim=-1)
        exact = latents.to(torch.float64) * scales
        dtype = self._inputs.query.dtype
        errors = exact.abs() * unit_roundoff(dtype) + underflow_step(dtype)
        keys = torch.cat([exact, ropes.to(torch.float64)], dim=-1)
        return Stretch(keys, exact, (torch.cat([errors, torch.zeros(ropes.shape)], dim=-1), errors))


def _rows(pages: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows ``[keys, rows, dim]`` of ``[pages, page_size, 1, dim]`` at slots ``[keys, rows]``."""
    return pages.flatten(0, 2).index_select(0, slots.flatten()).view(*slots.shape, -1)


def _validate(inputs: SparseAttentionInputs) -> None:
    tokens, heads, rank = inputs.query.shape
    pool = inputs.pool
    if pool.kv_heads != 1 or pool.layout != "PA_BSND":
        raise ValueError(f"the pool has one latent per token in PA_BSND, got {pool.kv_heads} in {pool.layout}")
    if pool.head_dim != rank or inputs.query_rope.shape != (tokens, heads, pool.value_head_dim):
        raise ValueError(f"queries are of {pool.head_dim} and {pool.value_head_dim} elements, as latents and keys")
    if inputs.indices.dim() != 3 or inputs.indices.shape[:2] != (tokens, 1):
        raise ValueError(f"indices must be [{tokens}, 1, chosen], got {list(inputs.indices.shape)}")
    if (pool.key.dtype == torch.int8) != (inputs.scales is not None):
        raise ValueError("int8 latents have scales, and no others")
    if len(inputs.query_lengths) != len(inputs.kv_lengths) or sum(inputs.query_lengths) > tokens:
        raise ValueError(f"lengths {inputs.query_lengths} and {inputs.kv_lengths} are not of {tokens} rows")
    row = 0
    for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        if new and int(inputs.indices[row : row + new].max()) >= total:
            raise ValueError(f"an index names no token of a request of {total}")
        row += new
    check_pages(pool.block_table, inputs.query_lengths, inputs.kv_lengths, pool.page_size, len(pool.key))
