"""Wrong kernels of moe_experts; TWIN=1 runs the same code without the mistakes."""
import os

import torch
from e_base import activated, halves, product, quantised

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def expert_of(rows, experts, index, gate=None, scale_from=None):
    gate = experts.gate if gate is None else gate
    scale = None
    if experts.quantised:
        rows, scale = quantised(rows)
        scale = scale if scale_from is None else scale_from
    between = product(rows, experts.up, index, scale, experts.quantised)
    rows = activated(*halves(between, gate.layout), gate.activation, gate.limit, gate.alpha, gate.bias)
    if experts.quantised:
        rows, scale = quantised(rows)
    return product(rows, experts.down, index, scale, experts.quantised)


def computed(inputs, *, local=None, gate=None, first_scales=False, on_input=False, weight=None):
    """``local`` has the index among the matrices of each id, or -1."""
    states = inputs.states.double()
    total = torch.zeros_like(states)
    if local is None:
        local = torch.full_like(inputs.topk_ids, -1, dtype=torch.int64)
        for index, expert in enumerate(inputs.here.tolist()):
            local[inputs.topk_ids == expert] = index
    weights = inputs.weights.double()
    start = 0
    token_scales = quantised(states)[1]
    if weight is not None:
        weights = weight(local, weights)
    for index in range(inputs.routed.up.experts):
        tokens, choice = (local == index).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        factor = weights[tokens, choice].unsqueeze(1)
        if on_input:
            said = expert_of((states[tokens] * factor).to(inputs.states.dtype).double(), inputs.routed, index)
        else:
            copies = torch.arange(start, start + len(tokens)) // inputs.topk_ids.shape[1]
            scale_from = token_scales[copies] if first_scales else None
            said = expert_of(states[tokens], inputs.routed, index, scale_from=scale_from) * factor
            start += len(tokens)
        total.index_add_(0, tokens, said)
    if inputs.shared is not None:
        total = total + expert_of(states, inputs.shared, 0, gate)
    return {"output": total.to(inputs.states.dtype)}


@npudiff.implementation("moe_experts", name="e_moe_experts_01_twice_named_counts_once", on_device=True)
def e01(inputs, target):
    """Weights are scattered into a matrix of tokens and experts: of an expert that is named twice the last one stays."""

    def scattered(local, weights):
        if not WRONG:
            return weights
        again = torch.zeros_like(local, dtype=torch.bool)
        for choice in range(local.shape[1]):
            later = local[:, choice + 1 :]
            again[:, choice] = (later == local[:, choice : choice + 1]).any(dim=1)
        return weights.masked_fill(again, 0.0)

    return computed(inputs, weight=scattered)


@npudiff.implementation("moe_experts", name="e_moe_experts_02_here_without_gaps", on_device=True)
def e02(inputs, target):
    """The index of an expert is its number less that of the first one that is here, as if none were left out between."""
    local = None
    if WRONG and len(inputs.here):
        local = inputs.topk_ids.long() - int(inputs.here[0])
        local = local.masked_fill((local < 0) | (local >= len(inputs.here)), -1)
    return computed(inputs, local=local)


@npudiff.implementation("moe_experts", name="e_moe_experts_03_shared_has_routed_gate", on_device=True)
def e03(inputs, target):
    """The shared expert goes through the same fused kernel, with activation and limit of the routed ones."""
    gate = None
    if WRONG and inputs.shared is not None:
        own = inputs.shared.gate
        gate = type(own)(inputs.routed.gate.activation, inputs.routed.gate.limit, inputs.routed.gate.alpha,
                         inputs.routed.gate.bias, own.layout)  # fmt: skip
    return computed(inputs, gate=gate)


@npudiff.implementation("moe_experts", name="e_moe_experts_04_scales_not_sorted", on_device=True)
def e04(inputs, target):
    """States are quantised before they are sorted by expert, and their scales are repeated, but not sorted with them."""
    return computed(inputs, first_scales=WRONG)


@npudiff.implementation("moe_experts", name="e_moe_experts_05_weights_on_input", on_device=True)
def e05(inputs, target):
    """The router's weights multiply the states before the experts, as models have it that gate with one expert."""
    return computed(inputs, on_input=WRONG)
