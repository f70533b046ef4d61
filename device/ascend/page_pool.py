"""One pool of pages as a backend keeps it: storage for one kind of layer, and which of its pages are free.

Source: sglang 0.5.23, ``hardware_backend/npu/memory_pool_npu.py`` 88-360: pages lie one after the other, page 0 is a
dummy, and tokens are written with ``npu_scatter_nd_update_`` into the storage seen as ``[slots, heads, dim]``.
"""

from __future__ import annotations

import torch

from npudiff.reference.hybrid_pools import PoolStorage
from npudiff.reference.paged_kv import PagedKV


class PagePool:
    """Storage of one kind of layer, and which of its pages are free.

    Parameters
    ----------
    storage : PoolStorage
        On the device, to write to.

    Attributes
    ----------
    key, value : torch.Tensor
        ``[1 + pages, page_size, kv_heads, dim]``.
    free_pages : torch.Tensor
        int64, in the order in which they are taken.
    """

    def __init__(self, storage: PoolStorage) -> None:
        self.key, self.value = storage.key, storage.value
        self.free_pages = torch.arange(1, storage.pages + 1, device=storage.key.device)

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put tokens into slots, int64 ``[tokens]``."""
        for cache, rows in ((self.key, key), (self.value, value)):
            torch.ops.npu.npu_scatter_nd_update_(cache.view(-1, *rows.shape[1:]), slots.view(-1, 1), rows)

    def copy(self, source: torch.Tensor, slots: torch.Tensor) -> None:
        """Copy what lies in some slots to others."""
        self.write(slots, self.key.flatten(0, 1)[source], self.value.flatten(0, 1)[source])

    def paged(self, table: torch.Tensor) -> PagedKV:
        """Return the pool with the block table of a batch."""
        return PagedKV(self.key, self.value, table)
