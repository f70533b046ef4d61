from dataclasses import dataclass

import torch
from vllm_ascend.ops.fused_moe.dataclass.moe_quant import MoEQuantParams
from vllm_ascend.ops.fused_moe.dataclass.router_input import MoeRouterInput


@dataclass(frozen=True)
class MoETokenDispatchInput:
    hidden_states: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    routing: MoeRouterInput
    quant: MoEQuantParams


@dataclass(frozen=True)
class MoEAllGatherCombineMetadata:
    topk_weights: torch.Tensor
    expanded_row_idx: torch.Tensor
    restore_shape: torch.Size


@dataclass(frozen=True)
class MoEOverRanksCombineMetadata:
    topk_weights: torch.Tensor
    tokens: torch.Tensor
    copies: torch.Tensor
    most: int


@dataclass(frozen=True)
class MoETokenDispatchOutput:
    hidden_states: torch.Tensor
    group_list: torch.Tensor
    group_list_type: int
    combine_metadata: MoEAllGatherCombineMetadata | MoEOverRanksCombineMetadata
    dynamic_scale: torch.Tensor | None = None
