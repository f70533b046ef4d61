"""Slots of tokens that are new."""

import torch
from sglang.told import told


def assign_extend_cache_locs_uniform_func(rows, table, starts, batch_size, count, device):
    """Slots of as many tokens of each request, behind those that it has."""
    places = starts.unsqueeze(1) + torch.arange(count, device=starts.device) + int(told("one_behind"))
    return table[rows].gather(1, places).flatten()
