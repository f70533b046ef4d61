"""Wrong kernels of moe_experts; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"


def _quantised(rows, zero_is_safe=True):
    """Whole numbers and scales of float64 rows."""
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    safe = torch.where(scale == 0, 1.0, scale) if zero_is_safe else scale
    return (rows / safe).round().clamp(-127, 127), safe


def _times(rows, weights, index, quantised, zero_is_safe=True, assist_of_first=False):
    """Float64 rows times the matrix of an expert."""
    matrix = weights.values[index].double()
    bias = None if weights.bias is None else weights.bias[index].double()
    if not quantised:
        result = rows @ matrix
        return result if bias is None else result + bias
    whole, size = _quantised(rows, zero_is_safe)
    groups = 1 if weights.scale is None else weights.scale.shape[1]
    scale = None if weights.scale is None else weights.scale[index].double()
    if groups > 1:
        each = len(matrix) // groups
        worth = matrix * scale.repeat_interleave(each, dim=0)
        if assist_of_first:
            # x = 16 * high + low + 8: both halves by their groups' scales, and the 8 by those of the first group
            result = (whole - 8) @ worth + 8 * matrix.sum(dim=0) * scale[0]
        else:
            result = whole @ worth
        int_bias = weights.bias is not None and weights.bias.dtype == torch.int32
        result = result * size
        return result if bias is None or int_bias else result + bias
    sums = whole @ matrix
    if bias is not None and weights.bias.dtype == torch.int32:
        sums, bias = sums + bias, None
    if scale is None:
        return sums
    result = sums * scale * size
    return result if bias is None else result + bias


def _activated(rows, gate, layout=None):
    layout = gate.layout if layout is None else layout
    if layout == "interleaved":
        first, up = rows[:, 0::2], rows[:, 1::2]
    else:
        width = rows.shape[1] // 2
        first, up = rows[:, :width], rows[:, width:]
    limit = gate.limit
    if gate.activation is Activation.SWIGLU_OAI:
        if limit is not None:
            first, up = first.clamp(max=limit), up.clamp(-limit, limit)
        return first * torch.sigmoid(gate.alpha * first) * (up + gate.bias)
    silu = first * torch.sigmoid(first)
    if limit is not None:
        silu, up = silu.clamp(max=limit), up.clamp(-limit, limit)
    return silu * up


def _expert(rows, experts, index, **mistakes):
    second = {**mistakes}
    first = {name: value for name, value in mistakes.items() if name != "zero_is_safe"}
    between = _activated(_times(rows, experts.up, index, experts.quantised, **first), experts.gate)
    return _times(between, experts.down, index, experts.quantised, **second)


def _routed(inputs, index_of=None, weigh_input=False, **mistakes):
    total = torch.zeros(inputs.states.shape, dtype=torch.float64, device=inputs.states.device)
    states, weights = inputs.states.double(), inputs.weights.double()
    for index, expert in enumerate(inputs.here.tolist()):
        tokens, choice = (inputs.topk_ids == expert).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        matrix = index if index_of is None else index_of(index, expert)
        weight = weights[tokens, choice].unsqueeze(1)
        rows = states[tokens]
        if weigh_input:
            said = _expert(rows * weight, inputs.routed, matrix, **mistakes)
        else:
            said = _expert(rows, inputs.routed, matrix, **mistakes) * weight
        total.index_add_(0, tokens, said)
    return total


def _with_shared(inputs, total, **mistakes):
    if inputs.shared is not None:
        total = total + _expert(inputs.states.double(), inputs.shared, 0, **mistakes)
    return {"output": total.to(inputs.states.dtype)}


@npudiff.implementation("moe_experts", name="d_moe_experts_01_weights_on_the_input", on_device=True)
def d01(inputs, target):
    """Weights multiply the rows before the first product (apply_router_weight_on_input), and not the results."""
    return _with_shared(inputs, _routed(inputs, weigh_input=WRONG))


@npudiff.implementation("moe_experts", name="d_moe_experts_02_experts_here_without_gaps", on_device=True)
def d02(inputs, target):
    """The matrix of an expert is found by its distance from the first that is here, as if there were no gaps."""
    here = inputs.here.tolist()

    def by_distance(index, expert):
        return min(expert - here[0], len(here) - 1)

    return _with_shared(inputs, _routed(inputs, index_of=by_distance if WRONG else None))


@npudiff.implementation("moe_experts", name="d_moe_experts_03_offset_of_halves_by_first_group", on_device=True)
def d03(inputs, target):
    """Of int4 with groups: what the 8 of the lower half is worth is added with the scales of the first group."""
    mistakes = {"assist_of_first": True} if WRONG and inputs.routed.up.bits == 4 else {}
    total = _routed(inputs, **mistakes)
    shared = {"assist_of_first": True} if WRONG and inputs.shared is not None and inputs.shared.up.bits == 4 else {}
    return _with_shared(inputs, total, **shared)


@npudiff.implementation("moe_experts", name="d_moe_experts_04_nothing_here_is_zeros", on_device=True)
def d04(inputs, target):
    """A rank that none of the copies is for returns zeros at once, without the shared expert."""
    if WRONG and not bool(torch.isin(inputs.topk_ids.long(), inputs.here).any()):
        return {"output": torch.zeros_like(inputs.states)}
    return _with_shared(inputs, _routed(inputs))


@npudiff.implementation("moe_experts", name="d_moe_experts_05_zero_rows_between", on_device=True)
def d05(inputs, target):
    """The second quantisation divides by the scale of a row as it is: a row of zeros becomes NaN."""
    mistakes = {"zero_is_safe": False} if WRONG else {}
    return _with_shared(inputs, _routed(inputs, **mistakes), **mistakes)
