"""Bringing the rows of experts back together on vllm-ascend: ``TokenDispatcherWithAllGather.token_combine``."""

from __future__ import annotations

import torch
from vllm_ascend.ops.fused_moe.dataclass.token_dispatcher import MoEAllGatherCombineMetadata

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.dispatch_world import dispatcher
from npudiff.reference.moe_finalize import MoeFinalizeInputs


@implementation(
    "moe_finalize",
    name="TokenDispatcherWithAllGather.token_combine",
    supports={"residual": (False,)},
    on_device=True,
)
def combine(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """TokenDispatcherWithAllGather.token_combine, whose dispatch gave copies for other ranks a weight of 0.

    Rows that no place names are those behind the copies that are here, which the products leave as memory was.
    """
    tokens, top_k = inputs.src_to_dst_row.shape
    weights = inputs.weights * (inputs.src_to_dst_row >= 0)
    shape = torch.Size((tokens, inputs.expanded_rows.shape[1]))
    metadata = MoEAllGatherCombineMetadata(weights, inputs.src_to_dst_row.flatten(), shape)
    answer: torch.Tensor = dispatcher(top_k, top_k, top_k).token_combine(inputs.expanded_rows, metadata)
    return answer
