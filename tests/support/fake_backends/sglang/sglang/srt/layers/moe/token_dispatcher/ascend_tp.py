"""Tokens to their experts and back, where all experts are on each rank."""

from typing import NamedTuple

import torch
from sglang.srt.hardware_backend.npu.moe.finalize_routing import NPUFinalizeRouting
from sglang.srt.hardware_backend.npu.moe.init_routing import NPUMoEInitRouting_v2


class AscendTPDispatchOutput(NamedTuple):
    hidden_states: torch.Tensor
    hidden_states_scale: torch.Tensor | None
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    expanded_row_idx: torch.Tensor
    expert_tokens: torch.Tensor
    group_list_type: int


class AscendTPCombineInput(NamedTuple):
    hidden_states: torch.Tensor


class AscendTPDispatcher:
    def __init__(self, moe_runner_config):
        self.num_experts, self.top_k = moe_runner_config.num_experts, moe_runner_config.top_k
        self.quant_config, self._sent, self.dtype = {}, None, None

    def set_quant_config(self, quant_config):
        self.quant_config = quant_config

    def dispatch(self, hidden_states, topk_output):
        """Copies of tokens whose expert is not here lie behind all others."""
        self.dtype = hidden_states.dtype
        routing = NPUMoEInitRouting_v2(1 if self.quant_config.get("quantised") else -1)
        rows, places, counts, scale = routing._init_routing(
            hidden_states, topk_output.topk_ids, self.num_experts + 1, self.top_k
        )
        weights = topk_output.topk_weights.masked_fill(topk_output.topk_ids >= self.num_experts, 0.0)
        counts = counts[: self.num_experts]
        self._sent = AscendTPDispatchOutput(rows, scale, weights, topk_output.topk_ids, places, counts, 1)
        return self._sent

    def combine(self, combine_input):
        sent = self._sent
        return NPUFinalizeRouting(2)._finalize_routing(
            combine_input.hidden_states, sent.topk_weights, sent.expanded_row_idx, sent.topk_ids
        )
