"""Lengths of shards."""

import torch


def get_dcp_lens(lens, dcp_size, dcp_rank, start=None, interleave_size=1):
    """Tokens of a rank, of so many first ones dealt in stretches."""
    token = torch.arange(int(lens.max()) + 1, device=lens.device)
    mine = (token // interleave_size % dcp_size == dcp_rank).long()
    return (mine.cumsum(0) - mine)[lens.clamp(min=0)]
