"""The choice of experts as sglang's Ascend backend makes it (``hardware_backend/npu/moe/topk.py``, 19-154)."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.moe_gating import MoeGatingInputs

Outputs = dict[str, torch.Tensor]

_PLAIN = {"bias": (False,), "groups": (1,)}
_SOFTMAX = {"scoring": ("softmax",)}
_SIGMOID = {"scoring": ("sigmoid",)}


def by_expert(inputs: MoeGatingInputs, weights: torch.Tensor, index: torch.Tensor) -> Outputs:
    """Weights ``[tokens, experts]``, and how many different experts each token has, from those that were chosen."""
    dense = torch.zeros_like(inputs.logits).scatter_add(1, index.long(), weights.to(inputs.logits.dtype))
    named = torch.zeros_like(inputs.logits, dtype=torch.bool).scatter(1, index.long(), value=True)
    return {"weights": dense, "top_k": named.sum(dim=1)}


@implementation(
    "moe_gating",
    supports={**_SOFTMAX, **_PLAIN, "renormalise": (False,), "scaling": (1.0,)},
    on_device=True,
    graph=True,
)
def npu_moe_gating_top_k_softmax(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """npu_moe_gating_top_k_softmax, whose weights do not add up to 1."""
    weights, index, _ = torch.ops.npu.npu_moe_gating_top_k_softmax(inputs.logits, k=inputs.top_k)
    return by_expert(inputs, weights, index)


@implementation(
    "moe_gating",
    supports={**_SOFTMAX, **_PLAIN, "renormalise": (True,), "dtype": ("float32",)},
    on_device=True,
    graph=True,
)
def softmax_then_norm(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """npu_moe_gating_top_k_softmax, and the weights divided by their sum."""
    weights, index, _ = torch.ops.npu.npu_moe_gating_top_k_softmax(inputs.logits, k=inputs.top_k)
    return by_expert(inputs, weights / weights.sum(dim=1, keepdim=True) * inputs.scaling, index)


@implementation(
    "moe_gating",
    supports=[{**_SIGMOID, "renormalise": (True,)}, {**_SOFTMAX, "renormalise": (False,)}],
    on_device=True,
    graph=True,
)
def npu_moe_gating_top_k(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """npu_moe_gating_top_k: sigmoids are renormalised, a softmax is not."""
    return top_k(inputs)


def top_k(inputs: MoeGatingInputs) -> Outputs:
    """Call the operator with what the configuration says."""
    weights, index, _ = torch.ops.npu.npu_moe_gating_top_k(
        inputs.logits,
        inputs.top_k,
        bias=inputs.bias,
        k_group=inputs.kept_groups,
        group_count=inputs.groups,
        group_select_mode=1 if inputs.group_score == "sum of two" else 0,
        norm_type=1 if inputs.scoring == "sigmoid" else 0,
        routed_scaling_factor=inputs.scaling,
    )
    return by_expert(inputs, weights, index)


@implementation("moe_gating", on_device=True, graph=True)
def native_gating(inputs: MoeGatingInputs, target: Target) -> Outputs:
    """Composed of plain torch operators in float32."""
    scores = scored(inputs)
    index = best(inputs, scores)
    return by_expert(inputs, weighted(inputs, scores.gather(1, index)), index)


def scored(inputs: MoeGatingInputs) -> torch.Tensor:
    """Scores of all experts, float32 ``[tokens, experts]``."""
    logits = inputs.logits.float()
    if inputs.scoring == "sqrtsoftplus":
        return torch.nn.functional.softplus(logits).sqrt()
    return logits.sigmoid() if inputs.scoring == "sigmoid" else logits.softmax(dim=1)


def best(inputs: MoeGatingInputs, scores: torch.Tensor) -> torch.Tensor:
    """Experts of each token, int64 ``[tokens, top_k]``."""
    wanted = scores if inputs.bias is None else scores + inputs.bias.float()
    if inputs.groups > 1:
        grouped = wanted.view(len(wanted), inputs.groups, -1)
        best_of_group = grouped.topk(2, dim=2).values
        worth = best_of_group.sum(dim=2) if inputs.group_score == "sum of two" else best_of_group[..., 0]
        left = torch.ones_like(worth, dtype=torch.bool)
        left.scatter_(1, worth.topk(inputs.kept_groups, dim=1).indices, value=False)
        wanted = wanted.masked_fill(left.repeat_interleave(grouped.shape[2], dim=1), -torch.inf)
    return wanted.topk(inputs.top_k, dim=1).indices


def weighted(inputs: MoeGatingInputs, scores: torch.Tensor) -> torch.Tensor:
    """Weights of the experts that were chosen."""
    total = scores.sum(dim=1, keepdim=True) if inputs.renormalise else 1.0
    return scores / total * inputs.scaling
