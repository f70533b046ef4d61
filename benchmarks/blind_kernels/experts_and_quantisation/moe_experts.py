"""Wrong moe_experts kernels; with TWIN=1 the same without their mistakes."""
import os
from dataclasses import replace

import torch

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"


def quantised(rows, largest=None):
    rows = rows.float()
    scale = (rows.abs().amax(dim=1, keepdim=True) if largest is None else largest) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return torch.round(rows / scale).clamp(-127, 127) * scale


def times(rows, weights, index, largest=None, bias=True):
    matrix, dtype = weights.values[index].float(), rows.dtype
    rows = rows.float()
    if weights.scale is not None:
        each = len(matrix) // weights.scale.shape[1]
        matrix = matrix * weights.scale[index].float().repeat_interleave(each, dim=0)
        rows = quantised(rows, largest)
    result = rows @ matrix
    if bias and weights.bias is not None:
        result = result + weights.bias[index].float()
    return result.to(dtype)


def activated(gates, gate):
    dtype, values = gates.dtype, gates.float()
    if gate.layout == "interleaved":
        first, up = values[:, 0::2], values[:, 1::2]
    else:
        width = values.shape[1] // 2
        first, up = values[:, :width], values[:, width:]
    if gate.activation is Activation.SWIGLU_OAI:
        if gate.limit is not None:
            first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
        return (first * torch.sigmoid(first * gate.alpha) * (up + gate.bias)).to(dtype)
    result = torch.nn.functional.silu(first)
    if gate.limit is not None:
        result, up = result.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return (result * up).to(dtype)


def said(rows, experts, index, gate=None, per_group=False, bias=True):
    between = activated(times(rows, experts.up, index), experts.gate if gate is None else gate)
    largest = between.float().abs().amax().view(1, 1) if per_group else None
    return times(between, experts.down, index, largest, bias)


def composed(inputs, here=None, numbers=None, weights=None, capacity=None, shared=True, shared_gate=None, skip=None,
             down_bias=True, **changes):
    total = torch.zeros(inputs.states.shape, dtype=torch.float32)
    ids = inputs.topk_ids.long() if numbers is None else numbers
    weights = inputs.weights.float() if weights is None else weights
    for index, expert in enumerate(inputs.here.tolist() if here is None else here):
        tokens, choice = (ids == expert).nonzero(as_tuple=True)
        if capacity is not None:
            tokens, choice = tokens[:capacity], choice[:capacity]
        if len(tokens):
            rows = said(inputs.states[tokens], inputs.routed, index, bias=down_bias, **changes).float()
            total.index_add_(0, tokens, rows * weights[tokens, choice].unsqueeze(1))
            if not down_bias and inputs.routed.down.bias is not None:
                total.index_add_(0, tokens, inputs.routed.down.bias[index].float().expand(len(tokens), -1))
    if inputs.shared is not None and shared:
        own = said(inputs.states, inputs.shared, 0, shared_gate).float()
        total += own if skip is None else own.masked_fill(skip.unsqueeze(1), 0.0)
    return total.to(inputs.states.dtype)


def is_here(inputs):
    return (inputs.topk_ids.long().unsqueeze(2) == inputs.here).any(dim=2)


@npudiff.implementation("moe_experts", name="b_experts_01_shared_only_with_copies", on_device=True)
def b01(inputs, target):
    """Tokens without an expert here are skipped."""
    return composed(inputs, skip=~is_here(inputs).any(dim=1) if WRONG else None)


@npudiff.implementation("moe_experts", name="b_experts_02_here_is_a_range", on_device=True)
def b02(inputs, target):
    """Numbers of the experts here, from the first one on."""
    first, count = int(inputs.here[0]), len(inputs.here)
    return composed(inputs, here=range(first, first + count) if WRONG else None)


@npudiff.implementation("moe_experts", name="b_experts_03_weights_on_input", on_device=True)
def b03(inputs, target):
    """One choice per token: the weight is applied to the states."""
    if not WRONG or inputs.topk_ids.shape[1] != 1:
        return composed(inputs)
    states = (inputs.states.float() * inputs.weights.float()).to(inputs.states.dtype)
    routed = composed(replace(inputs, states=states, shared=None), weights=torch.ones_like(inputs.weights).float()).float()
    if inputs.shared is not None:
        routed = routed + said(inputs.states, inputs.shared, 0).float()
    return routed.to(inputs.states.dtype)


@npudiff.implementation("moe_experts", name="b_experts_04_gate_of_routed_for_shared", on_device=True)
def b04(inputs, target):
    """Activation of shared experts."""
    return composed(inputs, shared_gate=inputs.routed.gate if WRONG else None)


@npudiff.implementation("moe_experts", name="b_experts_05_weights_in_a_matrix", on_device=True)
def b05(inputs, target):
    """Weights of all experts in a matrix; a token that names one twice has two weights for it."""
    if not WRONG:
        return composed(inputs)
    ids = inputs.topk_ids.long()
    known = int(ids.max()) + 1 if ids.numel() else 1
    matrix = torch.zeros(len(ids), known).scatter(1, ids, inputs.weights.float())
    first = torch.ones_like(ids, dtype=torch.bool)
    for k in range(1, ids.shape[1]):
        first[:, k] = (ids[:, :k] != ids[:, k : k + 1]).all(dim=1)
    return composed(inputs, weights=matrix.gather(1, ids) * first)


@npudiff.implementation("moe_experts", name="b_experts_06_one_scale_per_expert", on_device=True)
def b06(inputs, target):
    """The second quantisation, by the largest element of a tile."""
    return composed(inputs, per_group=WRONG and inputs.routed.quantised)


@npudiff.implementation("moe_experts", name="b_experts_07_capacity", on_device=True)
def b07(inputs, target):
    """Buffers for twice the rows of a balanced batch, and 8 at least."""
    share = max(8, -(-2 * inputs.topk_ids.numel() // len(inputs.here)))
    return composed(inputs, capacity=share if WRONG and len(inputs.here) > 2 else None)


@npudiff.implementation("moe_experts", name="b_experts_08_down_bias_unweighted", on_device=True)
def b08(inputs, target):
    """The bias of the second product is added at the end."""
    return composed(inputs, down_bias=not WRONG)


@npudiff.implementation("moe_experts", name="b_experts_09_interleaved_when_quantised", on_device=True)
def b09(inputs, target):
    """The activation of int8 experts takes halves."""
    gate = inputs.routed.gate
    if WRONG and inputs.routed.quantised and gate.layout == "interleaved":
        gate = replace(gate, layout="halves")
    return composed(inputs, gate=gate)


@npudiff.implementation("moe_experts", name="b_experts_10_nobody_here_returns", on_device=True)
def b10(inputs, target):
    """A rank that has none of the experts of a batch returns its buffer, in which the shared sum is not yet."""
    if WRONG and not bool(is_here(inputs).any()):
        return torch.zeros_like(inputs.states)
    return composed(inputs)
