"""A paged KV cache as a contract: pages of keys and values, and the table that says which page holds which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.reference.views import moved

LAYOUTS = ("PA_BSND", "PA_NZ")
"""How pages that attention reads may lie: ``[pages, page_size, heads, dim]`` or
``[pages, heads, dim / C0, page_size, C0]``, where C0 elements are 32 bytes."""


@dataclass(frozen=True)
class PagedKV:
    """One pool of pages and the block table of a batch.

    Token ``t`` of request ``b`` lies in page ``block_table[b, t // page_size]`` at offset ``t % page_size``. Page 0 is
    a dummy that padded and evicted tokens point to.
    """

    key: torch.Tensor
    """``[pages, page_size, kv_heads, head_dim]``, bfloat16 or float16; or the same in the shape of the layout."""
    value: torch.Tensor
    """``[pages, page_size, kv_heads, value_head_dim]``, of the dtype of ``key``; or in the shape of the layout."""
    block_table: torch.Tensor
    """int32 ``[batch, width]``. Entries beyond a request's pages, and entries of pages that left the window, hold any
    valid page."""
    layout: str = "PA_BSND"
    """One of ``LAYOUTS``."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {self.layout}")
        rank = 5 if self.layout == "PA_NZ" else 4
        if self.key.dim() != rank or self.value.dim() != rank:
            raise ValueError(f"{self.layout} pools have {rank} axes, got {self.key.dim()} and {self.value.dim()}")

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.key.shape[3 if self.layout == "PA_NZ" else 1]

    @property
    def kv_heads(self) -> int:
        """KV heads."""
        return self.key.shape[1 if self.layout == "PA_NZ" else 2]

    @property
    def head_dim(self) -> int:
        """Elements of a head of keys."""
        return self._dim(self.key)

    @property
    def value_head_dim(self) -> int:
        """Elements of a head of values."""
        return self._dim(self.value)

    def _dim(self, cache: torch.Tensor) -> int:
        return cache.shape[2] * cache.shape[4] if self.layout == "PA_NZ" else cache.shape[3]

    def to(self, device: str | torch.device) -> PagedKV:
        """Return the same pool on ``device``."""
        return replace(
            self,
            key=self.key.to(device),
            value=self.value.to(device),
            block_table=moved(self.block_table, device),
        )

    def read(self, request: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of tokens ``first`` to ``last - 1`` of one request.

        Only the pages that hold these tokens are touched, and only their table entries are read.

        Returns
        -------
        tuple of torch.Tensor
            ``[last - first, kv_heads, head_dim]`` and ``[last - first, kv_heads, value_head_dim]``.

        Raises
        ------
        IndexError
            If a table entry of the range is not a page of the pool, or the table is too narrow.
        """
        size = self.page_size
        first_page, last_page = first // size, (last - 1) // size
        entries = self.block_table[request, first_page : last_page + 1].to(torch.int64)
        if len(entries) <= last_page - first_page:
            raise IndexError(
                f"block_table has {self.block_table.shape[1]} pages, token {last - 1} needs {last_page + 1}"
            )
        if int(entries.min()) < 0 or int(entries.max()) >= self.key.shape[0]:
            raise IndexError(f"block_table of request {request} names a page outside the pool of {self.key.shape[0]}")
        inside = slice(first - first_page * size, last - first_page * size)
        # Selecting whole pages copies runs of memory: six times as fast as indexing with a tensor.
        key, value = (cache.index_select(0, entries) for cache in (self.key, self.value))
        return self._tokens(key)[inside], self._tokens(value)[inside]

    def _tokens(self, pages: torch.Tensor) -> torch.Tensor:
        """The tokens of some pages, one after the other, ``[tokens, heads, dim]``."""
        if self.layout == "PA_BSND":
            return pages.flatten(0, 1)
        return pages.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


def check_pages(table: torch.Tensor, new: Sequence[int], totals: Sequence[int], page_size: int, pages: int) -> None:
    """Raise ``ValueError`` unless the tokens of all requests that have new ones lie in pages that there are."""
    for request, total in enumerate(totals):
        if min(total, new[request]) < 0:
            raise ValueError(f"request {request} has {new[request]} new tokens of {total}")
        own = table[request, : -(-total // page_size)] if new[request] else table[request, :0]
        if new[request] and len(own) < -(-total // page_size):
            raise ValueError(f"the table is too narrow for {total} tokens")
        if bool(((own < 0) | (own >= pages)).any()):
            raise ValueError(f"a page of request {request} is none of {pages}")
