"""Sorting tokens by expert in sglang: ``hardware_backend/npu/moe/init_routing.py``."""

from __future__ import annotations

import torch
from sglang.srt.hardware_backend.npu.moe.init_routing import NPUMoEInitRouting_v1, NPUMoEInitRouting_v2

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.moe_routing import MoeRoutingInputs

Outputs = dict[str, torch.Tensor]

_ALL_HERE: Box = {"local": (False,), "padded_ids": ("none",)}
"""A dispatcher of one rank has all experts, and padded tokens keep theirs, with weights of 0."""

_QUANT_MODES = {"as they are": -1, "by largest": 1}


@implementation(
    "moe_routing", name="NPUMoEInitRouting_v2", supports={**_ALL_HERE, "form": tuple(_QUANT_MODES)}, on_device=True
)
def second(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """NPUMoEInitRouting_v2 of rows as they are, and of rows that become int8."""
    routing = NPUMoEInitRouting_v2(_QUANT_MODES[inputs.form])
    rows, places, counts, scale = routing._init_routing(
        inputs.states, inputs.experts, inputs.all_experts, inputs.experts.shape[1]
    )
    outputs = {"rows": rows, "src_to_dst_row": places.view(inputs.experts.shape).long(), "counts": counts}
    return outputs if scale is None else {**outputs, "scale": scale}


@implementation(
    "moe_routing", name="NPUMoEInitRouting_v1", supports={**_ALL_HERE, "form": ("as they are",)}, on_device=True
)
def first(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """NPUMoEInitRouting_v1, whose places are those of a first, a second, ... expert of all tokens, and counts ends."""
    rows, places, ends, _ = NPUMoEInitRouting_v1()._init_routing(
        inputs.states, inputs.experts, inputs.all_experts, inputs.experts.shape[1]
    )
    by_token = places.view(inputs.experts.shape[::-1]).T.contiguous().long()
    return {"rows": rows, "src_to_dst_row": by_token, "counts": torch.diff(ends, prepend=ends.new_zeros(1))}
