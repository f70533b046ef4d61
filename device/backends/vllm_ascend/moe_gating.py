"""The choice of experts of vllm-ascend: ``ops/fused_moe/router``."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import grouped_topk
from vllm_ascend.ops.fused_moe.router.fused_topk_router import AscendFusedTopKRouter
from vllm_ascend.ops.fused_moe.router.grouped_topk_router import AscendGroupedTopKRouter
from vllm_ascend.ops.fused_moe.router.router_factory import create_ascend_fused_moe_router

from npudiff import Target, implementation
from npudiff.device.ascend.moe_gating import by_expert
from npudiff.model.constraints import Box
from npudiff.reference.moe_gating import MoeGatingInputs

Outputs = dict[str, torch.Tensor]

HIDDEN = 2048
"""Elements of a token's state: routers look at this number, and at nothing else of the states."""

_MODELS: tuple[Box, ...] = (
    {"groups": (1,)},
    {"bias": (True,), "group_score": ("sum of two",)},
    {"bias": (False,), "group_score": ("largest",)},
)
"""What a group is worth: its two best experts where these have a bias, as DeepSeek-V3 says, else its best one, as
DeepSeek-V2 says. So do vllm's own routers, which are told no more."""

_CHOSEN: tuple[Box, ...] = tuple({**box, "scoring": ("softmax", "sigmoid")} for box in _MODELS)
"""For ``sqrtsoftplus`` vllm-ascend takes an operator of its own in C++, ``moe_gating_top_k_hash``, which is not here;
its way without one has not been run."""

_FUSED: tuple[Box, ...] = tuple(
    {**box, **scores}
    for box in _MODELS
    for scores in ({"scoring": ("softmax",)}, {"scoring": ("sigmoid",), "renormalise": (True,)})
)
"""Its operator renormalises sigmoids in any case, so vllm-ascend takes it for these only."""


def _routed(make: Any, inputs: MoeGatingInputs) -> Outputs:  # noqa: ANN401 - a class, or what chooses one
    """Make a router as a model does, and ask it."""
    tokens, experts = inputs.logits.shape
    grouped = inputs.groups > 1
    router = make(
        top_k=inputs.top_k, global_num_experts=experts, renormalize=inputs.renormalise, use_grouped_topk=grouped,
        num_expert_group=inputs.groups if grouped else None, topk_group=inputs.kept_groups if grouped else None,
        scoring_func=inputs.scoring, routed_scaling_factor=inputs.scaling, e_score_correction_bias=inputs.bias,
    )  # fmt: skip
    weights, chosen = router._compute_routing(inputs.logits.new_zeros(1, 1).expand(tokens, HIDDEN), inputs.logits, None)
    return by_expert(inputs, weights.to(inputs.logits.dtype), chosen)


@implementation("moe_gating", name="create_ascend_fused_moe_router", supports=_CHOSEN, on_device=True)
def chosen_router(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """The router that vllm-ascend chooses for a configuration."""
    return _routed(create_ascend_fused_moe_router, inputs)


@implementation("moe_gating", name="AscendFusedTopKRouter", supports=_FUSED, on_device=True)
def fused_router(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """AscendFusedTopKRouter: moe_gating_top_k."""
    return _routed(AscendFusedTopKRouter, inputs)


@implementation("moe_gating", name="AscendGroupedTopKRouter", supports=_CHOSEN, on_device=True)
def native_router(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """AscendGroupedTopKRouter: the way without an operator of its own."""
    return _routed(AscendGroupedTopKRouter, inputs)


@implementation(
    "moe_gating",
    name="grouped_topk",
    supports=[{**box, "groups": range(2, 1025), "dtype": ("float32",)} for box in _CHOSEN[1:]],
    on_device=True,
    native=True,
)
def grouped_topk_of_vllm(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """grouped_topk of vllm, not compiled: the plain form of what vllm-ascend's routers replace, of float32 logits."""
    plain = getattr(grouped_topk, "_torchdynamo_orig_callable", grouped_topk)
    hidden = inputs.logits.new_zeros(1, 1).expand(len(inputs.logits), HIDDEN)
    weights, chosen = plain(
        hidden, inputs.logits, inputs.top_k, inputs.renormalise, inputs.groups, inputs.kept_groups, inputs.scoring,
        inputs.scaling, inputs.bias,
    )  # fmt: skip
    return by_expert(inputs, weights.to(inputs.logits.dtype), chosen)
