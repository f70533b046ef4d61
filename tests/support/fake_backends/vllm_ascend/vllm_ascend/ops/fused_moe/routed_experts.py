"""Experts of floats."""

import torch
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.quantization.quant_type import QuantType


class AscendUnquantizedFusedMoEMethod(torch.nn.Module):
    def process_weights_after_loading(self, layer):
        """``[experts, columns, inner]`` becomes ``[experts, inner, columns]``."""
        for name in ("w13_weight", "w2_weight"):
            values = getattr(layer, name).transpose(1, 2).contiguous()
            setattr(layer, name, torch.nn.Parameter(values, requires_grad=False))

    def apply(self, layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input):
        weights = (layer.w13_weight, None, layer.w13_bias), (layer.w2_weight, None, layer.w2_bias)
        comm = _EXTRA_CTX.moe_comm_method
        return comm.fused_experts(layer, x, topk_weights, topk_ids, QuantType.NONE, weights)
