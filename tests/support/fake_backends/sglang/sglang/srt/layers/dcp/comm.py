"""Putting together what ranks found."""

import torch
from sglang.told import told


def cp_lse_ag_out_rs_mla_npu(output, lse, group):
    """The own heads of a result over all ranks' keys; a part without keys has an infinite logarithm."""
    ranks, (tokens, heads, dim) = group.world_size, output.shape
    both = torch.cat([output.float(), lse.float().unsqueeze(-1)], dim=-1).transpose(0, 1).contiguous()
    received = torch.empty_like(both)
    group.all_to_all_single(received, both)
    parts = received.view(ranks, heads // ranks, tokens, dim + 1).transpose(1, 2)
    logs = parts[..., -1].masked_fill(parts[..., -1].isinf(), -torch.inf)
    weights = logs.softmax(dim=0) if not told("ranks_weigh_alike") else torch.full_like(logs, 1 / ranks)
    return (weights.unsqueeze(-1) * parts[..., :-1]).sum(dim=0).to(output.dtype)
