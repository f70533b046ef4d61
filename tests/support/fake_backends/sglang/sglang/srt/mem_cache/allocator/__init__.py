"""Allocation of slots: pages are taken whole, from the head of a list of free ones."""

import torch


def alloc_extend_naive(prefix_lens, seq_lens, last_loc, free_pages, out_indices, page_size, device):
    """Write the slots of new tokens, one request after the other; return how many pages they took."""
    taken, written = 0, 0
    for prefix, length, last in zip(prefix_lens.tolist(), seq_lens.tolist(), last_loc.tolist(), strict=True):
        room = min(-prefix % page_size, length - prefix)
        pages = -(-(length - prefix - room) // page_size)
        places = torch.arange(page_size, device=device)
        own = (free_pages[taken : taken + pages, None] * page_size + places).flatten()
        slots = torch.cat([last + 1 + torch.arange(room, device=device), own])[: length - prefix]
        out_indices[written : written + length - prefix] = slots.to(out_indices.dtype)
        taken, written = taken + pages, written + length - prefix
    return taken
