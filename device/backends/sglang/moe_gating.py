"""The choice of experts of sglang: ``hardware_backend/npu/moe/topk.py``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.moe.topk import fused_topk_npu
from sglang.srt.layers.moe.topk import TopKConfig

from npudiff import Target, implementation
from npudiff.device.ascend.moe_gating import by_expert
from npudiff.device.backends.sglang.world import configured, kernels_are_here
from npudiff.model.constraints import Box
from npudiff.reference.moe_gating import MoeGatingInputs

Outputs = dict[str, torch.Tensor]

_CHOICE: Box = {"dtype": ("float32",), "scaling": (1.0,)}
_PLAIN: Box = {**_CHOICE, "bias": (False,), "groups": (1,)}


def _chosen(inputs: MoeGatingInputs) -> Outputs:
    """Have sglang choose, told what the model's configuration says."""
    configured()
    wanted: dict[str, Any] = {
        "top_k": inputs.top_k,
        "use_grouped_topk": inputs.groups > 1,
        "topk_group": inputs.kept_groups,
        "num_expert_group": inputs.groups,
        "renormalize": inputs.renormalise,
        "correction_bias": inputs.bias,
        "routed_scaling_factor": inputs.scaling,
        "scoring_func": inputs.scoring,
    }
    known = {field.name for field in fields(TopKConfig)}
    config = TopKConfig(**{name: value for name, value in wanted.items() if name in known})
    hidden = inputs.logits.new_zeros(len(inputs.logits), 16)
    answer = fused_topk_npu(hidden, inputs.logits, config)
    return by_expert(inputs, answer.topk_weights, answer.topk_ids)


@implementation(
    "moe_gating",
    name="fused_topk_npu",
    supports={**_PLAIN, "scoring": ("softmax",), "renormalise": (False,)},
    on_device=True,
)
def softmax(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of a softmax, whose weights stay as they are."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_renormalised",
    supports={**_PLAIN, "scoring": ("softmax",), "renormalise": (True,)},
    on_device=True,
    requires=kernels_are_here,
)
def renormalised_softmax(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of a softmax, renormalised by a Triton kernel."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_sigmoid",
    supports={**_CHOICE, "scoring": ("sigmoid",), "bias": (True,), "group_score": ("sum of two",)},
    on_device=True,
)
def sigmoid(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of sigmoids with a bias, with and without groups."""
    return _chosen(inputs)
