"""Tokens to the experts of a rank and back, where every rank has all tokens."""

import torch
from vllm_ascend.ops.fused_moe.dataclass.token_dispatcher import MoEAllGatherCombineMetadata, MoETokenDispatchOutput
from vllm_ascend.quantization.quant_type import QuantType
from vllm_ascend.told import told


def get_ep_group():
    raise RuntimeError("no group of ranks was made")


class TokenDispatcherWithAllGather:
    def __init__(self, *, top_k, num_experts, num_local_experts):
        self.top_k, self.num_experts, self.num_local_experts = top_k, num_experts, num_local_experts

    def token_dispatch(self, token_dispatch_input):
        """Sort copies by expert, those whose expert is not here behind all others, with weights of 0."""
        given, experts = token_dispatch_input, self.num_local_experts
        ids = given.topk_ids.long()
        if given.routing.expert_map is not None:
            ids = given.routing.expert_map[ids].long()
        here = (ids >= 0) & (ids < experts)
        numbers = torch.where(here, ids, experts).flatten()
        order = numbers.argsort(stable=True)
        places = torch.full_like(numbers, -1)
        places[order] = torch.arange(len(order), device=order.device)
        places = torch.where(here.flatten(), places, -1).int()
        counts = torch.bincount(numbers, minlength=experts + 1)[:experts]
        tokens = order // given.topk_ids.shape[1]
        rows, scale = given.hidden_states[tokens], given.routing.pertoken_scale
        if scale is not None:
            scale = scale[tokens]
        elif given.quant.quant_type is not QuantType.NONE:
            rows, scale = torch.ops.npu.npu_dynamic_quant(rows)
        weights = given.topk_weights * (here | told("elsewhere_counts"))
        metadata = MoEAllGatherCombineMetadata(weights, places, given.hidden_states.shape)
        return MoETokenDispatchOutput(rows, counts, 1, metadata, scale)

    def token_combine(self, hidden_states, combine_metadata):
        said = combine_metadata
        places = said.expanded_row_idx.view(said.topk_weights.shape).long()
        elsewhere = (places < 0) & (not told("elsewhere_counts"))
        found = hidden_states[places.clamp(min=0)].float().masked_fill(elsewhere.unsqueeze(-1), 0.0)
        return (found * said.topk_weights.float().unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)
