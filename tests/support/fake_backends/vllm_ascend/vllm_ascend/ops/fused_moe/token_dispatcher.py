"""Tokens to the experts of a rank and back, where every rank has all tokens."""

import torch
import torch.distributed as dist
from vllm_ascend.ops.fused_moe.dataclass.token_dispatcher import (
    MoEAllGatherCombineMetadata,
    MoEOverRanksCombineMetadata,
    MoETokenDispatchOutput,
)
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
            ids = ids - get_ep_group().rank_in_group * experts
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


def get_mc2_group():
    raise RuntimeError("no group of ranks was made")


def gathered(rows, most, group, filler):
    """Rows of all ranks, as many of each."""
    mine = rows.new_full((most, *rows.shape[1:]), filler)
    mine[: len(rows)] = rows
    everywhere = rows.new_empty(group.world_size * most, *rows.shape[1:])
    dist.all_gather_into_tensor(everywhere, mine, group=group.device_group)
    return everywhere


def dispatched(given, group, experts, mask, kind):
    """Take from all tokens those of the experts of this rank, by expert and then by rank."""
    most = torch.tensor([len(given.topk_ids)], device=given.topk_ids.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group.device_group)
    ids = given.topk_ids if mask is None else given.topk_ids.masked_fill(~mask.unsqueeze(1), -1)
    states, ids = gathered(given.hidden_states, int(most), group, 0.0), gathered(ids, int(most), group, -1)
    here = experts // group.world_size
    numbers = ids - group.rank_in_group * here
    tokens, copies = ((numbers >= 0) & (numbers < here)).nonzero(as_tuple=True)
    numbers = numbers[tokens, copies]
    counts = torch.bincount(numbers, minlength=here)
    order = numbers.argsort(stable=True)
    if told("rows_by_rank"):
        order = torch.arange(len(numbers), device=numbers.device)
    rows, scale = states[tokens[order]], None
    if given.quant.quant_type is not QuantType.NONE and len(rows):
        rows, scale = torch.ops.npu.npu_dynamic_quant(rows)
    metadata = MoEOverRanksCombineMetadata(given.topk_weights, tokens[order], copies[order], int(most))
    return MoETokenDispatchOutput(rows, counts if kind else counts.cumsum(0), kind, metadata, scale)


def combined(hidden_states, said, group):
    """Sum over ranks what experts say of each copy, and then over the copies of a token."""
    size = (group.world_size * said.most, said.topk_weights.shape[1], hidden_states.shape[1])
    total = torch.zeros(size, device=hidden_states.device)
    total[said.tokens, said.copies] = hidden_states.float()
    dist.all_reduce(total, group=group.device_group)
    mine = total[group.rank_in_group * said.most :][: len(said.topk_weights)]
    return (mine * said.topk_weights.float().unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


class TokenDispatcherWithMC2:
    def token_dispatch(self, token_dispatch_input):
        given = token_dispatch_input
        experts = len(given.routing.expert_map) + given.routing.global_redundant_expert_num
        mask = None if told("padding_counts") else given.routing.mc2_mask
        return dispatched(given, get_mc2_group(), experts, mask, 0)

    def token_combine(self, hidden_states, combine_metadata):
        return combined(hidden_states, combine_metadata, get_mc2_group())


class TokenDispatcherWithAll2AllV:
    def __init__(self, *, top_k, num_experts, num_local_experts):
        del top_k, num_local_experts
        self.num_experts = num_experts

    def token_dispatch(self, token_dispatch_input):
        return dispatched(token_dispatch_input, get_ep_group(), self.num_experts, None, 1)

    def token_combine(self, hidden_states, combine_metadata):
        return combined(hidden_states, combine_metadata, get_ep_group())
