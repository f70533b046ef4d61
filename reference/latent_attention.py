"""Multi-head latent attention over a paged cache of latents: absorbed into the query, or expanded to heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import attended
from npudiff.reference.attention_tile import EVERYONE, AttentionRoundings
from npudiff.reference.bounds import Expected, accumulation_error, underflow_step, unit_roundoff
from npudiff.reference.cache_reader import CacheReader, Stretch
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.views import moved


@dataclass(frozen=True)
class UpProjections:
    """What makes keys and values of each head from a latent."""

    key: torch.Tensor
    """``[heads, nope_dim, rank]``: key ``c`` of a head is ``sum_r key[head, c, r] * latent[r]``."""
    value: torch.Tensor
    """``[heads, rank, value_dim]``."""

    def to(self, device: str | torch.device) -> UpProjections:
        """Return the same matrices on ``device``."""
        return UpProjections(self.key.to(device), self.value.to(device))


@dataclass(frozen=True)
class LatentAttentionInputs:
    """One attention call of one layer whose cache holds a latent and a rotated key per token, for all heads.

    Row ``r`` of a request with ``q`` new and ``L`` total tokens stands at position ``L - q + r`` and sees the keys at
    positions up to its own. A score is ``scale * (query . key + query_rope . rope_key)``.
    """

    query: torch.Tensor
    """``[tokens, heads, rank]`` in the absorbed form, whose keys and values are the latents; ``[tokens, heads,
    nope_dim]`` in the expanded form. bfloat16 or float16. Rows beyond ``sum(query_lengths)`` are padding: their output
    is zero, their LSE is not specified."""
    query_rope: torch.Tensor
    """``[tokens, heads, rope_dim]``: the rotated part of the queries."""
    pool: PagedKV
    """Latents as keys, and rotated keys as values, of one head: ``[pages, page_size, 1, rank]`` and ``[pages,
    page_size, 1, rope_dim]``, or the same in NZ."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens (the new ones included) of each request."""
    scale: float
    """Factor of the scores."""
    up: UpProjections | None = None
    """Of the expanded form: keys and values are ``[latent @ up, rope key]`` and ``latent @ up``, rounded to the
    query's dtype."""
    roundings: AttentionRoundings = EVERYONE
    """Where the device at hand rounds that others do not."""

    @property
    def rank(self) -> int:
        """Elements of a latent."""
        return self.pool.head_dim

    @property
    def rope_dim(self) -> int:
        """Elements of a rotated key."""
        return self.pool.value_head_dim

    @property
    def value_dim(self) -> int:
        """Elements of an output row of one head."""
        return self.rank if self.up is None else self.up.value.shape[2]

    def to(self, device: str | torch.device) -> LatentAttentionInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        return replace(
            self,
            query=moved(self.query, device),
            query_rope=moved(self.query_rope, device),
            pool=self.pool.to(device),
            up=None if self.up is None else self.up.to(device),
        )


def latent_attention(inputs: LatentAttentionInputs) -> dict[str, Expected]:
    """Return attention outputs and log-sum-exp, with bounds.

    A row that sees no key (of a request of length 0, as graphs pad their batch) has output 0 and an LSE of minus
    infinity.

    Returns
    -------
    dict
        ``output``: ``[tokens, heads, rank]`` in the absorbed form and ``[tokens, heads, value_dim]`` in the expanded
        one, in the query's dtype. ``lse``: float32 ``[tokens, heads]``.

    Raises
    ------
    ValueError
        If the shapes contradict each other.

    Notes
    -----
    Multi-head latent attention of DeepSeek-AI, "DeepSeek-V2" (2024), eqs. 9 to 19. The absorbed form is attention of
    all heads over one key, ``[latent, rope key]``, whose first elements are its value. In the expanded form a device
    computes keys and values in float32 and rounds them: the value here is that of the exact ones, and the bound has
    the error of each element (``InexactKeys``).
    """
    _validate(inputs)
    return attended(
        torch.cat([inputs.query, inputs.query_rope], dim=-1),
        inputs.query_lengths,
        inputs.kv_lengths,
        lambda request, total: LatentReader(inputs, request, total),
        inputs.value_dim,
        scale=inputs.scale,
        roundings=inputs.roundings,
    )


class LatentReader(CacheReader):
    """Reads latents and rotated keys of one request as what attention is over, in the form of the inputs."""

    def __init__(self, inputs: LatentAttentionInputs, request: int, end: int) -> None:
        self._inputs = inputs
        super().__init__(inputs.pool, request, end)

    def sizes(self) -> tuple[int, int, int]:
        """See ``CacheReader``."""
        own = self._inputs
        return 1 if own.up is None else own.query.shape[1], own.query.shape[2] + own.rope_dim, own.value_dim

    def load(self, stored_keys: torch.Tensor, stored_values: torch.Tensor) -> Stretch:
        """Return a stretch of ``[latent, rope key]`` and latents, or of the keys and values of all heads."""
        latents, ropes, up = stored_keys, stored_values, self._inputs.up
        if up is None:
            return Stretch(torch.cat([latents, ropes], dim=-1), latents)
        heads, dtype = self.kv_heads, latents.dtype
        latents = latents.squeeze(1).to(torch.float64)
        keys, key_errors = _expanded(latents, up.key.to(torch.float64).transpose(1, 2), dtype)
        values, value_errors = _expanded(latents, up.value.to(torch.float64), dtype)
        rotated = ropes.to(torch.float64).expand(-1, heads, -1)
        keys = torch.cat([keys, rotated], dim=-1)
        return Stretch(keys, values, (torch.cat([key_errors, torch.zeros_like(rotated)], dim=-1), value_errors))


def _expanded(latents: torch.Tensor, matrices: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Products ``[tokens, heads, dim]`` of latents and the matrices ``[heads, rank, dim]``, and their errors.

    A device adds up in float32, relative to the norms of both by Cauchy-Schwarz, and rounds to a dtype.
    """
    product = torch.matmul(latents, matrices).transpose(0, 1)
    norms = latents.norm(dim=-1)[:, None, None] * matrices.norm(dim=1)
    sums = norms * accumulation_error(latents.shape[1])
    return product, sums + (product.abs() + sums) * unit_roundoff(dtype) + underflow_step(dtype)


def _validate(inputs: LatentAttentionInputs) -> None:
    tokens, heads, width = inputs.query.shape
    if inputs.query_rope.shape != (tokens, heads, inputs.rope_dim):
        found = tuple(inputs.query_rope.shape)
        raise ValueError(f"query_rope must be ({tokens}, {heads}, {inputs.rope_dim}), got {found}")
    if inputs.pool.kv_heads != 1:
        raise ValueError(f"the pool has one latent per token, got {inputs.pool.kv_heads} heads")
    up, rank = inputs.up, inputs.rank
    if up is None and width != rank:
        raise ValueError(f"an absorbed query has {rank} elements, as a latent, got {width}")
    if up is not None and (up.key.shape != (heads, width, rank) or up.value.shape[:2] != (heads, rank)):
        given = f"{tuple(up.key.shape)} and {tuple(up.value.shape)}"
        raise ValueError(f"up-projections must be ({heads}, {width}, {rank}) and ({heads}, {rank}, any), got {given}")
    if len(inputs.query_lengths) != len(inputs.kv_lengths):
        raise ValueError(f"{len(inputs.query_lengths)} query lengths, {len(inputs.kv_lengths)} KV lengths")
    if sum(inputs.query_lengths) > tokens:
        raise ValueError(f"query_lengths add up to {sum(inputs.query_lengths)}, the query has {tokens} rows")
