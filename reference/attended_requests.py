"""Attention of all requests of a batch, tile after tile, whatever their keys and values are read from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from npudiff.reference.attention_tile import EVERYONE, AttentionRoundings, AttentionTile
from npudiff.reference.bounds import Expected
from npudiff.reference.cache_reader import CacheReader

SCALE = "the softmax scale"
"""Direction of outputs: what a scale that is off, or was rounded, does to them."""

ROW_TILE = 64
"""Query rows that are computed together."""


def attended(
    query: torch.Tensor,
    query_lengths: Sequence[int],
    kv_lengths: Sequence[int],
    reader: Callable[[int, int], CacheReader],
    value_dim: int,
    *,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    roundings: AttentionRoundings = EVERYONE,
    chunked: bool = False,
) -> dict[str, Expected]:
    """Return attention outputs and log-sum-exp of a batch, with bounds.

    Parameters
    ----------
    query : torch.Tensor
        ``[tokens, heads, head_dim]``; rows beyond the requests are padding.
    query_lengths, kv_lengths : sequence of int
        New tokens and total tokens of each request.
    reader : callable
        Request and its total tokens to the reader of its keys and values.
    value_dim : int
        Elements of a value.
    scale, window, sinks, roundings
        As in ``SlidingAttentionInputs``.
    chunked : bool
        Whether the window is a chunk, as in ``ChunkedAttentionInputs``.

    Returns
    -------
    dict
        ``output``: ``[tokens, heads, value_dim]`` in the query's dtype; ``lse``: float32 ``[tokens, heads]``.
    """
    tokens, heads, _ = query.shape
    output = torch.zeros(tokens, heads, value_dim, dtype=torch.float64)
    output_bound = torch.zeros_like(output)
    by_scale = torch.zeros_like(output)
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64)
    lse_bound = torch.full((tokens, heads), math.inf, dtype=torch.float64)
    start = 0
    for request, (new, total) in enumerate(zip(query_lengths, kv_lengths, strict=True)):
        cache = reader(request, total)
        for first in range(0, new, ROW_TILE):
            last = min(first + ROW_TILE, new)
            rows = slice(start + first, start + last)
            position = total - new + first
            tile = AttentionTile(cache, query[rows], position, scale, window, sinks, roundings, chunked=chunked)
            output[rows], output_bound[rows], lse[rows], lse_bound[rows], by_scale[rows] = tile.attend()
        start += new
    return {
        "output": Expected(output, output_bound, query.dtype, directions={SCALE: by_scale}),
        "lse": Expected(lse, lse_bound, torch.float32),
    }
