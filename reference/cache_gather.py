"""Reading the tokens of requests out of a paged cache and into one piece, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import Expected, exactly
from npudiff.reference.cache_layout import CacheLayout


@dataclass(frozen=True)
class CacheGatherInputs:
    """Caches, the pages of each request, and which of its tokens are read."""

    key_cache: torch.Tensor
    value_cache: torch.Tensor
    """The caches in the shape of the layout (``reference.cache_layout``); bfloat16, float16 or int8."""
    block_table: torch.Tensor
    """int32 ``[batch, width]``: token ``t`` of a request lies in page ``block_table[request, t // page_size]``. Entries
    of no token that is read hold anything, -1 as well."""
    lengths: torch.Tensor
    """int32 ``[batch]``: how many tokens of each request are read; 0 is none."""
    starts: torch.Tensor | None
    """int32 ``[batch]``: the first token of each request that is read; None is 0 for all."""
    key: torch.Tensor
    """``[rows, kv_heads, head_dim]``: what the packed keys hold before; there are rows for all tokens at least."""
    value: torch.Tensor
    """``[rows, kv_heads, value_head_dim]``, the same for values."""
    page_size: int
    """Tokens per page."""
    layout: str
    """``PA_BSND``, ``PA_BNSD`` or ``PA_NZ``."""

    def to(self, device: str | torch.device) -> CacheGatherInputs:
        """Return the same inputs on ``device``; ``key`` and ``value`` are copies, which can be written."""
        return replace(
            self,
            key_cache=self.key_cache.to(device),
            value_cache=self.value_cache.to(device),
            block_table=self.block_table.to(device),
            lengths=self.lengths.to(device),
            starts=None if self.starts is None else self.starts.to(device),
            key=self.key.to(device, copy=True),
            value=self.value.to(device, copy=True),
        )


def cache_gather(inputs: CacheGatherInputs) -> dict[str, Expected]:
    """Return keys and values of all tokens that are read, request after request.

    Rows behind the last token stay what they were.

    Returns
    -------
    dict
        ``key`` and ``value``, of the shape and dtype of those of the inputs.

    Raises
    ------
    ValueError
        If a cache does not have the shape of its layout, there are not enough rows, or lengths or starts are negative.
    IndexError
        If a token lies beyond the block table, or in a page that there is not.
    """
    slots = token_slots(inputs)
    return {
        "key": _gathered(inputs, inputs.key, inputs.key_cache, slots),
        "value": _gathered(inputs, inputs.value, inputs.value_cache, slots),
    }


def token_slots(inputs: CacheGatherInputs) -> torch.Tensor:
    """Return the slot of every token that is read, request after request; int64 ``[tokens]``."""
    starts = [0] * len(inputs.lengths) if inputs.starts is None else inputs.starts.tolist()
    slots = []
    for pages, length, start in zip(inputs.block_table.to(torch.int64), inputs.lengths.tolist(), starts, strict=True):
        if min(length, start) < 0:
            raise ValueError(f"lengths and starts must not be negative, got {length} and {start}")
        token = torch.arange(start, start + length)
        if length and int(token[-1]) // inputs.page_size >= len(pages):
            raise IndexError(f"token {int(token[-1])} lies beyond {len(pages)} pages of {inputs.page_size}")
        slots.append(pages[token // inputs.page_size] * inputs.page_size + token % inputs.page_size)
    return torch.cat(slots)


def _gathered(inputs: CacheGatherInputs, before: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> Expected:
    rows, heads, dim = before.shape
    layout = CacheLayout(inputs.layout, cache.shape[0], inputs.page_size, heads, dim, before.dtype)
    if tuple(cache.shape) != layout.shape:
        raise ValueError(f"a {inputs.layout} cache of {before.dtype} must be {layout.shape}, got {tuple(cache.shape)}")
    if len(slots) > rows:
        raise ValueError(f"{len(slots)} tokens do not fit into {rows} rows")
    if bool(((slots < 0) | (slots >= layout.pages * layout.page_size)).any()):
        raise IndexError(f"block_table names a page outside the cache of {layout.pages}")
    after = before.clone()
    after[: len(slots)] = cache.reshape(-1)[layout.addresses(slots)]
    return exactly(after)
