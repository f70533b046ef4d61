"""The choice of experts, in plain torch."""

import torch


def grouped_topk(
    hidden_states, gating_output, topk, renormalize, num_expert_group=0, topk_group=0, scoring_func="softmax",
    routed_scaling_factor=1.0, e_score_correction_bias=None,
):  # fmt: skip
    """Choose by score and bias, within the best groups, and weigh by score alone.

    A group is worth its two best experts where these have a bias, else its best one.
    """
    logits = gating_output.float()
    scores = logits.softmax(dim=-1) if scoring_func == "softmax" else logits.sigmoid()
    worth = scores if e_score_correction_bias is None else scores + e_score_correction_bias.float()
    if num_expert_group:
        groups = worth.view(len(worth), num_expert_group, -1)
        best = groups.topk(1 if e_score_correction_bias is None else 2, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(1, best.topk(topk_group, dim=-1).indices, value=True)
        worth = groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
    chosen = worth.topk(topk, dim=-1).indices
    weights = scores.gather(1, chosen)
    if renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * routed_scaling_factor, chosen.int()
