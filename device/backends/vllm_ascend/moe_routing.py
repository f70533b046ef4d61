"""Sorting tokens by expert on vllm-ascend: ``TokenDispatcherWithAllGather.token_dispatch``."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.dispatch_world import QUANTISED, dispatched
from npudiff.reference.moe_routing import MoeRoutingInputs

Outputs = dict[str, torch.Tensor]


@implementation(
    "moe_routing",
    name="TokenDispatcherWithAllGather.token_dispatch",
    supports={"form": tuple(QUANTISED), "padded_ids": ("none",)},
    on_device=True,
)
def dispatch(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """TokenDispatcherWithAllGather.token_dispatch of floats, of rows that become int8, and of rows that have scales."""
    sent = dispatched(inputs)
    places = sent.combine_metadata.expanded_row_idx.view(inputs.experts.shape).long()
    outputs = {"rows": sent.hidden_states, "src_to_dst_row": places, "counts": sent.group_list}
    return outputs if sent.dynamic_scale is None else {**outputs, "scale": sent.dynamic_scale}
