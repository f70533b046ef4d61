"""The way through the cache: keys and values are written in one layout, and attention reads them in another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.paged_cache import PagedCacheInputs, paged_cache
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention
from npudiff.reference.views import moved_inputs


@dataclass(frozen=True)
class CachedAttentionInputs:
    """Keys and values of all tokens of some requests, where they go, and the queries that see them."""

    query: torch.Tensor
    """``[rows, heads, head_dim]``, bfloat16 or float16: the new tokens of all requests, one request after the other."""
    key: torch.Tensor
    value: torch.Tensor
    """``[tokens, kv_heads, head_dim]``, of the same dtype: all tokens of all requests, one request after the other."""
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    """``[pages, page_size, kv_heads, head_dim]``: what the pool holds before; seen if it is read. A pool in another
    layout holds as many bytes, of which none matters."""
    slots: torch.Tensor
    """int32 ``[tokens]``: ``page * page_size + offset``, each named once."""
    block_table: torch.Tensor
    """int32 ``[batch, width]``."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens of each request."""
    window: int | None
    """Visible keys, the query's own included."""
    scale: float
    """Factor of the scores."""
    write_layout: str
    read_layout: str
    """``PA_BSND`` or ``PA_NZ``: how the writer leaves the pool, and how attention has to find it. Where they differ,
    the pool has to be converted in between."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.key_cache.shape[1]

    def to(self, device: str | torch.device) -> CachedAttentionInputs:
        """Return the same inputs on ``device``; the caches are copies, so that a write leaves these as they are."""
        return moved_inputs(self, device, copies=("key_cache", "value_cache"))


def cached_attention(inputs: CachedAttentionInputs) -> dict[str, Expected]:
    """Return attention over what was written: the layouts change the path and never the result.

    It is ``paged_cache`` followed by ``sliding_attention``; nothing is defined here that is not defined there.

    Returns
    -------
    dict
        ``output``: ``[rows, heads, head_dim]`` in the query's dtype.

    Raises
    ------
    ValueError
        If shapes contradict each other, or a slot lies outside.
    """
    written = paged_cache(
        PagedCacheInputs(
            key=inputs.key,
            value=inputs.value,
            key_cache=inputs.key_cache,
            value_cache=inputs.value_cache,
            slots=inputs.slots,
            page_size=inputs.page_size,
            layout="PA_BSND",
        )
    )
    pool = PagedKV(written["key_cache"].value, written["value_cache"].value, inputs.block_table)
    attended = sliding_attention(
        SlidingAttentionInputs(
            query=inputs.query,
            full=pool,
            sliding=None,
            query_lengths=inputs.query_lengths,
            kv_lengths=inputs.kv_lengths,
            window=inputs.window,
            scale=inputs.scale,
            sinks=None,
        )
    )
    return {"output": attended["output"]}
