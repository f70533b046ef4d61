"""Rows in pages, as caches of operators have them."""

from __future__ import annotations

import torch


def paged(rows, page_size):
    """Rows in pages in another order, ``[pages, page_size, 1, elements]``, and their table, int32 ``[pages]``."""
    pages = -(-len(rows) // page_size)
    table = torch.randperm(pages, generator=torch.Generator().manual_seed(7)) + 1
    pool = torch.zeros(pages + 1, page_size, 1, rows.shape[-1], dtype=rows.dtype)
    for place, page in enumerate(table.tolist()):
        part = rows[place * page_size : (place + 1) * page_size]
        pool[page, : len(part), 0] = part
    return pool, table.to(torch.int32)
