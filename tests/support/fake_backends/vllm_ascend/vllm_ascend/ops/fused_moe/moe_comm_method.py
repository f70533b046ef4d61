"""From a layer's tokens to the sum of what its experts say."""

from dataclasses import dataclass

import torch
from vllm_ascend.ops.fused_moe.dataclass.moe_quant import MoEQuantParams
from vllm_ascend.ops.fused_moe.dataclass.router_input import MoeRouterInput
from vllm_ascend.ops.fused_moe.dataclass.token_dispatcher import MoETokenDispatchInput
from vllm_ascend.ops.fused_moe.moe_mlp import apply_mlp
from vllm_ascend.ops.fused_moe.token_dispatcher import TokenDispatcherWithAllGather


@dataclass
class FusedExpertsResult:
    routed_out: torch.Tensor


class AllGatherCommImpl:
    def _get_token_dispatcher(self):
        config = self.moe_config
        return TokenDispatcherWithAllGather(
            top_k=config.experts_per_token, num_experts=config.num_experts, num_local_experts=config.num_local_experts
        )

    def fused_experts(self, layer, x, topk_weights, topk_ids, quant_type, weights):
        routing = MoeRouterInput(layer.ascend_expert_map, 0, None, False)
        sent = self.token_dispatcher.token_dispatch(
            MoETokenDispatchInput(x, topk_weights, topk_ids, routing, MoEQuantParams(quant_type))
        )
        rows = apply_mlp(sent, weights, self.moe_config, x.dtype)
        return FusedExpertsResult(self.token_dispatcher.token_combine(rows, sent.combine_metadata))
