"""Sliding-window attention over a paged KV cache: prefill, chunked prefill, prefix hits and decode in one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import attended
from npudiff.reference.attention_tile import EVERYONE, AttentionRoundings
from npudiff.reference.bounds import Expected
from npudiff.reference.cache_reader import CacheReader
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.views import moved


@dataclass(frozen=True)
class SlidingAttentionInputs:
    """One attention call of one layer.

    Row ``r`` of a request with ``q`` new and ``L`` total tokens stands at position ``L - q + r`` and sees the keys at
    positions ``position - window + 1`` to ``position``: ``window`` keys, its own included.
    """

    query: torch.Tensor
    """``[tokens, heads, head_dim]``, bfloat16 or float16: the new tokens of all requests, one request after the other.
    Rows beyond ``sum(query_lengths)`` are padding: their output is zero, their LSE is not specified."""
    full: PagedKV
    """The pool of the full-attention layers."""
    sliding: PagedKV | None
    """The pool of the sliding-window layers of a hybrid model, with a block table of its own. A layer with a window
    reads this pool where there is one."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens (the new ones included) of each request."""
    window: int | None
    """Number of visible keys, the query's own included; None for a full-attention layer."""
    scale: float
    """Factor of the scores."""
    sinks: torch.Tensor | None
    """bfloat16 ``[heads]``: a logit per head that joins the softmax's denominator, unscaled, and has no value."""
    roundings: AttentionRoundings = EVERYONE
    """Where the device at hand rounds that others do not."""

    @property
    def kv(self) -> PagedKV:
        """The pool that this layer reads."""
        return self.full if self.window is None or self.sliding is None else self.sliding

    def to(self, device: str | torch.device) -> SlidingAttentionInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        return replace(
            self,
            query=moved(self.query, device),
            full=self.full.to(device),
            sliding=None if self.sliding is None else self.sliding.to(device),
            sinks=None if self.sinks is None else self.sinks.to(device),
        )


def sliding_attention(inputs: SlidingAttentionInputs) -> dict[str, Expected]:
    """Return attention outputs and log-sum-exp, with bounds.

    A row that sees no key (a request of length 0, or more new tokens than tokens) has output 0 and an LSE of minus
    infinity, or of its sink: the sum over no keys.

    Returns
    -------
    dict
        ``output``: ``[tokens, heads, value_head_dim]`` in the query's dtype. ``lse``: float32 ``[tokens, heads]``,
        natural logarithm of the sum of exponentials of the scaled scores and of the sink.

    Raises
    ------
    ValueError
        If the shapes contradict each other or the window is not positive.

    Notes
    -----
    Softmax attention of Vaswani et al., "Attention is all you need" (2017), eq. 1, with the window of Beltagy et al.,
    "Longformer" (2020), and the sink of Xiao et al. (2023) as a learned logit. It runs in tiles of rows and keys with
    two passes over the keys: the first finds the log-sum-exp, the second adds normalised weights times values.
    """
    _validate(inputs)
    return attended(
        inputs.query,
        inputs.query_lengths,
        inputs.kv_lengths,
        lambda request, total: CacheReader(inputs.kv, request, total),
        inputs.kv.value_head_dim,
        scale=inputs.scale,
        window=inputs.window,
        sinks=inputs.sinks,
        roundings=inputs.roundings,
    )


def _validate(inputs: SlidingAttentionInputs) -> None:
    tokens, heads, head_dim = inputs.query.shape
    if head_dim != inputs.kv.head_dim or heads % inputs.kv.kv_heads:
        raise ValueError(f"query {tuple(inputs.query.shape)} does not fit keys {tuple(inputs.kv.key.shape)}")
    axes = (0, 1, 3) if inputs.kv.layout == "PA_NZ" else (0, 1, 2)
    if any(inputs.kv.key.shape[axis] != inputs.kv.value.shape[axis] for axis in axes):
        raise ValueError(f"keys {tuple(inputs.kv.key.shape)} and values {tuple(inputs.kv.value.shape)} do not match")
    if len(inputs.query_lengths) != len(inputs.kv_lengths):
        raise ValueError(f"{len(inputs.query_lengths)} query lengths, {len(inputs.kv_lengths)} KV lengths")
    if sum(inputs.query_lengths) > tokens:
        raise ValueError(f"query_lengths add up to {sum(inputs.query_lengths)}, the query has {tokens} rows")
    if inputs.window is not None and inputs.window < 1:
        raise ValueError(f"window must be at least 1 (the query's own key) or None, got {inputs.window}")
    if inputs.sinks is not None and inputs.sinks.shape != (heads,):
        raise ValueError(f"sinks must be [{heads}], one per query head, got {list(inputs.sinks.shape)}")
