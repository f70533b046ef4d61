"""Copies of tokens, those of one expert after the other."""

import torch
from sglang.told import told


def _sorted(hidden_states, topk_ids):
    """Return copies in their order, and where that of each token and choice is."""
    order = topk_ids.flatten().argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return hidden_states[order // topk_ids.shape[1]], places.view(topk_ids.shape).int()


class NPUMoEInitRouting_v1:  # noqa: N801 - as sglang calls it
    def _init_routing(self, hidden_states, topk_ids, num_experts, top_k):
        """Return places of all first choices, then all second ones, and where each expert's copies end."""
        rows, places = _sorted(hidden_states, topk_ids)
        counts = torch.bincount(topk_ids.flatten(), minlength=num_experts)
        return rows, places.T.flatten(), counts.cumsum(0), None


class NPUMoEInitRouting_v2:  # noqa: N801 - as sglang calls it
    def __init__(self, quant_mode=-1):
        self.quant_mode = quant_mode

    def _init_routing(self, hidden_states, topk_ids, num_experts, top_k):
        """Return places by token, and how many copies each expert has."""
        rows, places = _sorted(hidden_states, topk_ids)
        counts = torch.bincount(topk_ids.flatten(), minlength=num_experts)
        if told("counts_of_one_more"):
            counts = counts.roll(1)
        if self.quant_mode == -1:
            return rows, places.flatten(), counts, None
        whole, scale = torch.ops.npu.npu_dynamic_quant(rows)
        return whole, places.flatten(), counts, scale
