"""Lengths of shards."""

import torch


def get_dcp_local_seq_lens(seq_lens, dcp_size, interleave_size):
    """Tokens of each request on each rank, of the first ones dealt in stretches."""
    token = torch.arange(int(seq_lens.max()) if seq_lens.numel() else 0)
    owner = token // interleave_size % dcp_size
    before = torch.nn.functional.one_hot(owner, dcp_size).cumsum(0) if len(token) else torch.zeros(0, dcp_size)
    counts = torch.cat([torch.zeros(1, dcp_size, dtype=torch.int64), before.long()])
    return counts[seq_lens.long()]
