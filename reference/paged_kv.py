"""A paged KV cache as a contract: pages of keys and values, and the table that says which page holds which tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PagedKV:
    """One pool of pages and the block table of a batch.

    Token ``t`` of request ``b`` lies in page ``block_table[b, t // page_size]`` at offset ``t % page_size``. Page 0 is
    a dummy that padded and evicted tokens point to.

    Attributes
    ----------
    key : torch.Tensor
        ``[pages, page_size, kv_heads, head_dim]``, bfloat16 or float16.
    value : torch.Tensor
        ``[pages, page_size, kv_heads, value_head_dim]``, of the dtype of ``key``.
    block_table : torch.Tensor
        int32 ``[batch, width]``. Entries beyond a request's pages, and entries of pages that left the window, hold
        any valid page.
    """

    key: torch.Tensor
    value: torch.Tensor
    block_table: torch.Tensor

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.key.shape[1]

    def to(self, device: str | torch.device) -> PagedKV:
        """Return the same pool on ``device``."""
        return PagedKV(self.key.to(device), self.value.to(device), self.block_table.to(device))

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
        return self.key[entries].flatten(0, 1)[inside], self.value[entries].flatten(0, 1)[inside]
