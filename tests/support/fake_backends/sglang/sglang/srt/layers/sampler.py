"""Filters of logits, in plain torch."""

import torch
from sglang.told import told


def top_k_top_p_min_p_sampling_from_logits_ascend(
    logits, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions, npu_top_k_top_p_eligible=False
):
    """Take top-p of what top-k leaves, whatever the batch."""
    ranked, index = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    ranked = ranked.masked_fill(torch.arange(ranked.shape[1], device=ranked.device) >= top_ks.view(-1, 1), 0.0)
    ranked = _filtered(ranked / ranked.sum(dim=-1, keepdim=True), top_ps, min_ps)
    if npu_top_k_top_p_eligible:
        return torch.multinomial(torch.zeros_like(ranked).scatter(1, index, ranked), num_samples=1).view(-1)
    return index.gather(1, torch.multinomial(ranked, num_samples=1)).view(-1)


def top_k_top_p_min_p_sampling_from_probs_torch(
    probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions
):
    """Take each filter of all probabilities."""
    ranked, index = probs.sort(dim=-1, descending=True)
    ranked = _filtered(ranked, top_ps, min_ps)
    ranked = ranked.masked_fill(torch.arange(ranked.shape[1], device=ranked.device) >= top_ks.view(-1, 1), 0.0)
    return index.gather(1, torch.multinomial(ranked, num_samples=1)).view(-1)


def _filtered(ranked, top_ps, min_ps):
    above = ranked.cumsum(dim=-1) - (0.0 if told("share_not_reached") else ranked)
    above[:, 0] = 0.0
    kept = (above <= top_ps.view(-1, 1)) & (ranked >= ranked[:, :1] * min_ps.view(-1, 1))
    return ranked.masked_fill(~kept, 0.0)
