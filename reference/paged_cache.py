"""Writing keys and values of new tokens into a paged cache, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from npudiff.reference.bounds import Computed, Expected, Updated, exactly
from npudiff.reference.cache_layout import CacheLayout
from npudiff.reference.views import moved_inputs

SKIPPED = -1
"""A slot that says: write this token nowhere."""


@dataclass(frozen=True)
class PagedCacheInputs:
    """New keys and values, where they go, and what the caches hold before."""

    key: torch.Tensor
    """``[tokens, kv_heads, head_dim]``, bfloat16, float16 or int8; its tokens may be slices of wider rows."""
    value: torch.Tensor
    """``[tokens, kv_heads, value_head_dim]``, of the dtype of ``key``."""
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    """The caches before the write, in the shape of the layout (``reference.cache_layout``). Page 0 is a dummy to which
    padded tokens are written."""
    slots: torch.Tensor
    """int32 or int64 ``[tokens]``: ``page * page_size + offset``, or -1 for a token that is written nowhere. No slot
    but 0 is named twice."""
    page_size: int
    """Tokens per page."""
    layout: str
    """``PA_BSND``, ``PA_BNSD`` or ``PA_NZ``."""

    def to(self, device: str | torch.device) -> PagedCacheInputs:
        """Return the same inputs on ``device``; the caches are copies, so that a write leaves these as they are."""
        return moved_inputs(self, device, copies=("key_cache", "value_cache"))


def paged_cache(inputs: PagedCacheInputs) -> dict[str, Updated]:
    """Return the caches after the write.

    Every element is compared bit for bit, also those that no slot names: they stay what they were. Only slot 0 is not
    specified if padded tokens go there: a writer may write any of them, or leave padding out.

    Returns
    -------
    dict
        ``key_cache`` and ``value_cache``, of the shape and dtype of the inputs.

    Raises
    ------
    ValueError
        If a cache does not have the shape of its layout, or a slot lies outside.
    """
    return {
        "key_cache": written(inputs, inputs.key_cache, exactly(inputs.key)),
        "value_cache": written(inputs, inputs.value_cache, exactly(inputs.value)),
    }


class Placed(Protocol):
    """Inputs that say where rows go in a cache."""

    @property
    def slots(self) -> torch.Tensor:
        """Slot of each row, ``SKIPPED`` for none."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    @property
    def layout(self) -> str:
        """How the cache lies."""


def written(inputs: Placed, cache: torch.Tensor, rows: Expected, *, dummy: bool = True) -> Updated:
    """Return a cache after rows are written into it: what no slot names stays what it was.

    Parameters
    ----------
    inputs : Placed
        Slots (of any shape, one per row), page size and layout.
    cache : torch.Tensor
        Before the write, in the shape of the layout; its dtype is that of the result.
    rows : Expected
        ``[tokens, heads, dim]``: moved values of the dtype of the cache, or computed ones in float64.
    dummy : bool
        Whether page 0 belongs to nobody: what is then written to slot 0 is padding, and nothing is said of it.

    Raises
    ------
    ValueError
        If the cache does not have the shape of its layout, or a slot lies outside.
    """
    slots, (tokens, heads, dim) = inputs.slots.flatten().to(torch.int64), rows.value.shape
    layout = CacheLayout(inputs.layout, cache.shape[0], inputs.page_size, heads, dim, cache.dtype)
    if tuple(cache.shape) != layout.shape:
        raise ValueError(f"a {inputs.layout} cache of {cache.dtype} must be {layout.shape}, got {tuple(cache.shape)}")
    if slots.shape != (tokens,) or bool(((slots < SKIPPED) | (slots >= layout.pages * layout.page_size)).any()):
        raise ValueError(f"slots must be [{tokens}], each -1 or in 0..{layout.pages * layout.page_size - 1}")
    own = slots != SKIPPED
    if dummy:  # of padding, which may be written to slot 0 by several tokens, the last stands for all
        own &= slots > 0
        own[(slots == 0).nonzero().flatten()[-1:]] = True
    slots, value, bound = slots[own], rows.value[own], rows.bound[own]
    if dummy:
        bound[slots == 0] = torch.inf
    places = layout.addresses(slots).flatten()
    return Updated(Computed(cache.clone(), places, value.flatten(), bound.flatten()))
