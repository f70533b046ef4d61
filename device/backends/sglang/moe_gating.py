"""The choice of experts of sglang: ``hardware_backend/npu/moe/topk.py``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.moe.topk import fused_topk_npu
from sglang.srt.layers.moe.topk import TopKConfig, select_experts

from npudiff import Target, implementation
from npudiff.device.ascend.moe_gating import by_expert
from npudiff.device.backends.sglang.world import configured, kernels_are_here, options_of
from npudiff.model.constraints import Box
from npudiff.reference.moe_gating import MoeGatingInputs

Outputs = dict[str, torch.Tensor]

_CHOICE: Box = {"dtype": ("float32",)}

_SOFTMAX: Box = {**_CHOICE, "scoring": ("softmax",), "bias": (False,), "groups": (1,)}
_SIGMOID: Box = {**_CHOICE, "scoring": ("sigmoid",), "bias": (False,), "groups": (1,)}
_BY_TRITON: Box = {"renormalise": (True,), "tokens": range(1, 4097)}
"""What a Triton kernel renormalises; its interpreter takes a row at a time."""
_BIASED: Box = {**_CHOICE, "bias": (True,), "group_score": ("sum of two",)}
_GROUPED: Box = {**_CHOICE, "bias": (False,), "groups": range(2, 1025), "group_score": ("largest",)}
"""Groups of models without a bias, such as DeepSeek-V2, are worth their best expert."""

PADDED = "num_token_non_padded"
_OPTIONS = {PADDED: ("none", "all")}
"""Whether a batch says how many of its tokens are real, as one does that several ranks share; here all of them are."""


def _configuration(inputs: MoeGatingInputs, **more: object) -> TopKConfig:
    """Return what a model's configuration says."""
    grouped = inputs.groups > 1
    wanted: dict[str, Any] = {
        "top_k": inputs.top_k,
        "use_grouped_topk": grouped,
        "topk_group": inputs.kept_groups if grouped else None,
        "num_expert_group": inputs.groups if grouped else None,
        "renormalize": inputs.renormalise,
        "correction_bias": inputs.bias,
        "routed_scaling_factor": inputs.scaling,
        "apply_routed_scaling_factor_on_output": inputs.scaling != 1.0,
        "scoring_func": inputs.scoring,
        **more,
    }
    known = {field.name for field in fields(TopKConfig)}
    return TopKConfig(**{name: value for name, value in wanted.items() if name in known})


def _chosen(inputs: MoeGatingInputs) -> Outputs:
    """Have sglang choose, told what the model's configuration says."""
    configured()
    padded = options_of(inputs).get(PADDED) == "all"
    real = torch.tensor(len(inputs.logits), dtype=torch.int32, device=inputs.logits.device) if padded else None
    hidden = inputs.logits.new_zeros(len(inputs.logits), 16)
    answer = fused_topk_npu(hidden, inputs.logits, _configuration(inputs), num_token_non_padded=real)
    return by_expert(inputs, answer.topk_weights, answer.topk_ids)


@implementation(
    "moe_gating",
    name="fused_topk_npu",
    supports={**_SOFTMAX, "renormalise": (False,)},
    options=_OPTIONS,
    on_device=True,
)
def softmax(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of a softmax, whose weights stay as they are."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_renormalised",
    supports={**_SOFTMAX, **_BY_TRITON},
    on_device=True,
    requires=kernels_are_here,
)
def renormalised_softmax(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of a softmax, renormalised by a Triton kernel."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_sigmoid",
    supports={**_BIASED, "scoring": ("sigmoid",)},
    options=_OPTIONS,
    on_device=True,
)
def sigmoid(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of sigmoids with a bias, with and without groups."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_sigmoid_without_bias",
    supports=[{**_SIGMOID, "renormalise": (False,)}, {**_SIGMOID, **_BY_TRITON}],
    on_device=True,
)
def sigmoid_without_bias(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of sigmoids without a bias, as Cohere's models have them."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_softmax_with_bias",
    supports={**_BIASED, "scoring": ("softmax",), "groups": (1,)},
    options=_OPTIONS,
    on_device=True,
)
def softmax_with_bias(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of a softmax with a bias for the choice, as ERNIE has it."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="fused_topk_npu_groups",
    supports={**_GROUPED, "scoring": ("softmax",)},
    options=_OPTIONS,
    on_device=True,
)
def groups(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """fused_topk_npu of a softmax with groups and without a bias, as DeepSeek-V2 has it."""
    return _chosen(inputs)


@implementation(
    "moe_gating",
    name="select_experts",
    supports=[
        {**_CHOICE, "groups": (1,), "scaling": (1.0,)},
        {**_GROUPED, "scoring": ("sigmoid", "softmax")},
        {**_BIASED, "groups": range(2, 1025), "scoring": ("sigmoid",)},
    ],
    on_device=True,
    native=True,
)
def native(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """select_experts in plain torch: what models are without kernels. Version 0.5.21 has no factor without groups."""
    configured()
    hidden = inputs.logits.new_zeros(len(inputs.logits), 16)
    answer = select_experts(hidden, inputs.logits, _configuration(inputs, torch_native=True))
    return by_expert(inputs, answer.topk_weights, answer.topk_ids)
