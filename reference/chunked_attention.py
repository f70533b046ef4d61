"""Attention within chunks over a paged KV cache: a token sees what stands before it in its own chunk of positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import attended
from npudiff.reference.bounds import Expected
from npudiff.reference.cache_reader import CacheReader
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.views import moved


@dataclass(frozen=True)
class ChunkedAttentionInputs:
    """One attention call of one layer.

    Row ``r`` of a request with ``q`` new and ``L`` total tokens stands at position ``p = L - q + r`` and sees the keys
    at positions ``p // chunk * chunk`` to ``p``.
    """

    query: torch.Tensor
    """``[tokens, heads, head_dim]``, bfloat16 or float16: the new tokens of all requests, one request after the other.
    Rows beyond ``sum(query_lengths)`` are padding: their output is zero."""
    kv: PagedKV
    """The pool. Pages of chunks that no new token is in may be anybody's."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens (the new ones included) of each request; no more new ones than tokens."""
    chunk: int
    """Positions of a chunk."""
    scale: float
    """Factor of the scores."""

    def to(self, device: str | torch.device) -> ChunkedAttentionInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        return replace(self, query=moved(self.query, device), kv=self.kv.to(device))


def chunked_attention(inputs: ChunkedAttentionInputs) -> dict[str, Expected]:
    """Return attention outputs, with bounds.

    Returns
    -------
    dict
        ``output``: ``[tokens, heads, value_head_dim]`` in the query's dtype.

    Raises
    ------
    ValueError
        If the shapes contradict each other, or the chunk is not positive.

    Notes
    -----
    The layers with rotary positions of Llama 4 (``attention_chunk_size``, 8,192 there), as ``chunked_overlay`` of
    transformers' ``masking_utils.py`` has them. Softmax, tiles and bounds are those of ``sliding_attention``.
    """
    tokens, heads, head_dim = inputs.query.shape
    if head_dim != inputs.kv.head_dim or heads % inputs.kv.kv_heads:
        raise ValueError(f"query {tuple(inputs.query.shape)} does not fit keys {tuple(inputs.kv.key.shape)}")
    pairs = list(zip(inputs.query_lengths, inputs.kv_lengths, strict=True))
    if sum(inputs.query_lengths) > tokens or any(not 0 <= new <= total for new, total in pairs):
        raise ValueError(f"new tokens {inputs.query_lengths} of {inputs.kv_lengths} are not of {tokens} rows")
    if inputs.chunk < 1:
        raise ValueError(f"a chunk has at least one position, got {inputs.chunk}")
    found = attended(
        inputs.query,
        inputs.query_lengths,
        inputs.kv_lengths,
        lambda request, total: CacheReader(inputs.kv, request, total),
        inputs.kv.value_head_dim,
        scale=inputs.scale,
        window=inputs.chunk,
        chunked=True,
    )
    return {"output": found["output"]}
