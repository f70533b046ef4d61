"""The choice of experts, in plain torch."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from sglang.told import told


@dataclass
class TopKConfig:
    top_k: int
    use_grouped_topk: bool = False
    topk_group: int | None = None
    num_expert_group: int | None = None
    renormalize: bool = True
    correction_bias: torch.Tensor | None = None
    torch_native: bool = False
    routed_scaling_factor: float | None = None
    apply_routed_scaling_factor_on_output: bool = False
    scoring_func: str = "softmax"


class StandardTopKOutput(NamedTuple):
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    router_logits: torch.Tensor | None


def select_experts(hidden_states, router_logits, topk_config, *, num_token_non_padded=None):
    """Choose by score and bias, within the best groups, and weigh by score alone."""
    config, logits = topk_config, router_logits.float()
    scores = logits.softmax(dim=-1) if config.scoring_func == "softmax" else logits.sigmoid()
    worth = scores if config.correction_bias is None else scores + config.correction_bias.float()
    if config.use_grouped_topk:
        worth = _within_groups(worth, config)
    chosen = worth.topk(config.top_k, dim=-1).indices
    weights = (worth if told("bias_in_weights") else scores).gather(1, chosen)
    if config.renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    if config.apply_routed_scaling_factor_on_output and not told("unscaled"):
        weights = weights * config.routed_scaling_factor
    return StandardTopKOutput(weights, chosen.int(), router_logits)


def _within_groups(worth, config):
    """Hide experts of all groups but the best: by their two best experts if these have a bias, else by their best."""
    groups = worth.view(len(worth), config.num_expert_group, -1)
    best = groups.topk(1 if config.correction_bias is None else 2, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(config.topk_group, dim=-1).indices, value=True)
    return groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
