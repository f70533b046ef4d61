"""Wrong kernels of swiglu_quant; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"

TILE = 256


def _groups(inputs, as_ends=False):
    """The group of each row; those of nobody have the last."""
    token = torch.arange(len(inputs.states), device=inputs.states.device)
    if inputs.counts is None:
        return torch.zeros_like(token)
    if as_ends:
        group = torch.zeros_like(token)
        start = 0
        for index, end in enumerate(inputs.counts.tolist()):
            group[start:] = index
            start = max(start, end)
        return group
    return torch.bucketize(token, inputs.counts.cumsum(0), right=True).clamp(max=len(inputs.counts) - 1)


def _numbers(inputs, group):
    if inputs.weight_scale is None:
        return inputs.states.double()
    sums = inputs.states.double()
    if inputs.bias is not None:
        sums = sums + inputs.bias.double()
    return sums * inputs.weight_scale[group].double() * inputs.token_scale.double().unsqueeze(1)


def _activated(inputs, numbers, limit, alpha, glu_bias):
    if inputs.gates == "even":
        gate, up = numbers[:, 0::2], numbers[:, 1::2]
    else:
        width = inputs.width
        gate, up = numbers[:, :width], numbers[:, width:]
        if inputs.gates == "right":
            gate, up = up, gate
    if inputs.activation is Activation.SWIGLU_OAI:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + glu_bias)
    silu = gate * torch.sigmoid(gate)
    if limit is not None:
        silu, up = silu.clamp(max=limit), up.clamp(-limit, limit)
    return silu * up


def _rows(inputs, group=None, defaults=False, narrow=False):
    """Activated rows, smoothed, float64."""
    group = _groups(inputs) if group is None else group
    limit, alpha, bias = inputs.limit, inputs.alpha, inputs.glu_bias
    if defaults and inputs.activation is Activation.SWIGLU_OAI:
        limit, alpha, bias = 7.0, 1.702, 1.0
    rows = _activated(inputs, _numbers(inputs, group), limit, alpha, bias)
    if narrow:
        rows = rows.half().double()
    return rows if inputs.smooth is None else rows * inputs.smooth[group].double()


def _quantised(rows, scale):
    safe = torch.where(scale == 0, 1.0, scale)
    return (rows / safe).nan_to_num(0.0, 127, -127).round().clamp(-127, 127).to(torch.int8)


def _outputs(rows):
    scale = rows.abs().amax(dim=1) / 127
    return {"quantised": _quantised(rows, scale.unsqueeze(1)), "scale": scale.float()}


@npudiff.implementation("swiglu_quant", name="d_swiglu_quant_01_counts_are_taken_for_ends", on_device=True)
def d01(inputs, target):
    """What is rows of each group is read as the row behind its last one, where scales and factors are chosen."""
    return _outputs(_rows(inputs, _groups(inputs, as_ends=WRONG)))


@npudiff.implementation("swiglu_quant", name="d_swiglu_quant_02_one_pass", on_device=True)
def d02(inputs, target):
    """Rows are quantised in one pass, each tile of 256 columns by the largest element up to there."""
    rows = _rows(inputs)
    outputs = _outputs(rows)
    if not WRONG:
        return outputs
    largest = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
    parts = []
    for start in range(0, rows.shape[1], TILE):
        part = rows[:, start : start + TILE]
        largest = torch.maximum(largest, part.abs().amax(dim=1, keepdim=True))
        parts.append(_quantised(part, largest / 127))
    return {**outputs, "quantised": torch.cat(parts, dim=1)}


@npudiff.implementation("swiglu_quant", name="d_swiglu_quant_03_defaults_of_the_operator", on_device=True)
def d03(inputs, target):
    """Limit, alpha and bias are not handed on: 7, 1.702 and 1 hold whatever the configuration says."""
    return _outputs(_rows(inputs, defaults=WRONG))


@npudiff.implementation("swiglu_quant", name="d_swiglu_quant_04_float16_between", on_device=True)
def d04(inputs, target):
    """What was activated is kept in float16 before it is smoothed, of a bfloat16 model as well: infinity beyond 65504."""
    narrow = WRONG and inputs.dtype == torch.bfloat16
    return _outputs(_rows(inputs, narrow=narrow))
