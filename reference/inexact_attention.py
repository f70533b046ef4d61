"""Attention whose queries, keys and values have errors, and the projection of its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import (
    EXPONENTIAL_ERROR,
    FLOAT32_ROUNDOFF,
    accumulation_error,
)
from npudiff.reference.spread import CONFIDENCE, Spread, rounding_scale


@dataclass(frozen=True)
class Projected:
    """Attention of each head, seen through a matrix of its own."""

    output: torch.Tensor
    """float64 ``[heads, rows, dim]``: what attention returns."""
    value: torch.Tensor
    """float64 ``[heads, rows, columns]``: ``output @ matrix`` of each head."""
    scale: torch.Tensor
    """Of the shape of ``value``: scale of its error, a correct attention's own roundings included."""


def visible(query_length: int, kv_length: int, window: int | None) -> torch.Tensor:
    """Return bool ``[query_length, kv_length]``: the keys that each of the last rows of a request sees."""
    distance = torch.arange(kv_length - query_length, kv_length).unsqueeze(1) - torch.arange(kv_length)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def projected_attention(
    query: Spread,
    key: Spread,
    value: Spread,
    seen: torch.Tensor,
    scale: float,
    matrix: torch.Tensor,
    dtype: torch.dtype,
) -> Projected:
    """Return softmax attention of one request, each head's output times a matrix, and the scale of its error.

    With weights ``p``, ``w_j = v_j @ M`` and ``o = sum p_j w_j``, an error ``d_j`` of a score moves the result by
    ``p_j (w_j - o) d_j``. Errors of a query are in all of its scores: they move it along ``sum_j p_j k_j (w_j - o)``.
    Errors of different keys and values, of the scores' sums and of the weights' rounding have nothing to do with each
    other, and what a row of ``query``, ``key`` or ``value`` has in common moves it as a whole. The identity for a
    matrix gives attention itself. Two products in a row are one matrix: errors of weights are in all elements of a
    head, and would not be independent after the first.

    Parameters
    ----------
    query : Spread
        ``[rows, heads, key_dim]``.
    key, value : Spread
        ``[keys, kv_heads, key_dim]`` and ``[keys, kv_heads, dim]``, as they lie in the cache.
    seen : torch.Tensor
        bool ``[rows, keys]``; every row sees a key.
    scale : float
        Factor of the scores.
    matrix : torch.Tensor
        float64 ``[heads, dim, columns]``.
    dtype : torch.dtype
        In which a device stores weights and output.
    """
    group = query.value.shape[1] // key.value.shape[1]
    queries, keys, values = _by_head(query, 1), _by_head(key, group), _by_head(value, group)
    key_dim = query.value.shape[-1]
    scores = scale * queries.value @ keys.value.transpose(-1, -2)  # [heads, rows, keys]
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    through = values.value @ matrix  # [heads, keys, columns]
    result = weights @ through
    output = weights @ values.value
    lengths = queries.value.norm(dim=-1, keepdim=True) * keys.value.norm(dim=-1).unsqueeze(-2)
    sums = scale * lengths * (accumulation_error(key_dim) + 2 * FLOAT32_ROUNDOFF)
    by_key = scale**2 * queries.value.square() @ keys.independent.square().transpose(-1, -2)
    by_key = by_key + (scores * keys.common.transpose(-1, -2)).square() + sums.square()
    rounding = rounding_scale(dtype) + EXPONENTIAL_ERROR + accumulation_error(max(2, len(key.value)))
    distance = through.unsqueeze(1) - result.unsqueeze(2)  # [heads, rows, keys, columns]
    moved = weights.unsqueeze(-1) * distance
    squares = (by_key.unsqueeze(-1) * moved.square()).sum(dim=2)
    along = torch.einsum("hrkc,hkd->hrdc", moved.float(), keys.value.float())  # an error needs no more precision
    squares += scale**2 * torch.einsum("hrd,hrdc->hrc", queries.independent.square().float(), along.square_())
    squares += (queries.common * (scores.unsqueeze(-1) * moved).sum(dim=2)).square()
    largest = torch.maximum(distance.abs(), through.abs().unsqueeze(1))  # a device divides by either sum
    squares += rounding**2 * (weights.unsqueeze(-1) * largest).square().sum(dim=2)
    squares += weights.square() @ (values.independent.square() @ matrix.square() + (through * values.common).square())
    squares += (rounding_scale(dtype) * output).square() @ matrix.square()
    # an exponential is convex: what is linear in the errors of scores is widened by the largest of them
    furthest = CONFIDENCE * (by_key.sqrt() + scale * _reach(queries, keys)) + queries.common * scores.abs()
    widest = torch.exp(torch.where(seen, furthest, 0.0).amax(dim=-1, keepdim=True))
    return Projected(output, result, squares.sqrt() * widest)


def _reach(queries: Spread, keys: Spread) -> torch.Tensor:
    """Scale of the error of each score that comes from its query, ``[heads, rows, keys]``."""
    return (queries.independent.square() @ keys.value.square().transpose(-1, -2)).sqrt()


def _by_head(rows: Spread, group: int) -> Spread:
    """From ``[rows, kv_heads, dim]`` to ``[heads, rows, dim]``."""
    parts = (
        part.transpose(0, 1).repeat_interleave(group, dim=0) for part in (rows.value, rows.independent, rows.common)
    )
    return Spread(*parts)
