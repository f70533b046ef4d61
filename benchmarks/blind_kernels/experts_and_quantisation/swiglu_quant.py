"""Wrong swiglu_quant kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"


def group_of(inputs, ends=None):
    rows = torch.arange(len(inputs.states))
    if inputs.counts is None:
        return torch.zeros_like(rows)
    ends = inputs.counts.cumsum(0) if ends is None else ends
    return torch.searchsorted(ends, rows, right=True).clamp(max=len(inputs.counts) - 1)


def numbers(inputs, group, bias="given"):
    if inputs.weight_scale is None:
        return inputs.states.float()
    bias = inputs.bias if isinstance(bias, str) else bias
    sums = inputs.states if bias is None else inputs.states + bias
    return sums.float() * inputs.weight_scale[group] * inputs.token_scale.unsqueeze(1)


def parts(values, gates):
    if gates == "even":
        return values[:, 0::2], values[:, 1::2]
    width = values.shape[1] // 2
    left, right = values[:, :width], values[:, width:]
    return (right, left) if gates == "right" else (left, right)


def activated(inputs, gate, up, limit):
    if inputs.activation is Activation.SWIGLU_OAI:
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(gate * inputs.alpha) * (up + inputs.glu_bias)
    result = torch.nn.functional.silu(gate)
    if limit is not None:
        result, up = result.clamp(max=limit), up.clamp(-limit, limit)
    return result * up


def quantised(rows, largest=None):
    scale = (rows.abs().amax(dim=1) if largest is None else largest) / 127
    safe = torch.where(scale == 0, 1.0, scale).unsqueeze(1)
    return {"quantised": torch.round(rows / safe).clamp(-128, 127).to(torch.int8), "scale": scale}


def rows_of(inputs, group=None, gates=None, limit="given", bias="given", smooth_group=None):
    group = group_of(inputs) if group is None else group
    gate, up = parts(numbers(inputs, group, bias), inputs.gates if gates is None else gates)
    rows = activated(inputs, gate, up, inputs.limit if limit == "given" else limit)
    if inputs.smooth is None:
        return rows
    return rows * inputs.smooth[group if smooth_group is None else smooth_group]


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_01_ends_in_int16", on_device=True)
def b01(inputs, target):
    """Ends of groups from counts."""
    if inputs.counts is None or not WRONG:
        return quantised(rows_of(inputs))
    ends = inputs.counts.cumsum(0).to(torch.int16).long()
    group = torch.zeros(len(inputs.states), dtype=torch.int64)
    for end in ends.tolist()[:-1]:
        group[max(end, 0) :] += 1
    return quantised(rows_of(inputs, group))


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_02_uniform_groups", on_device=True)
def b02(inputs, target):
    """Groups of one size divide, others are searched."""
    group = group_of(inputs)
    if WRONG and inputs.counts is not None:
        first = int(inputs.counts[0])
        if first and first * len(inputs.counts) == int(inputs.counts.sum()):
            group = (torch.arange(len(inputs.states)) // first).clamp(max=len(inputs.counts) - 1)
    return quantised(rows_of(inputs, group))


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_03_even_gates_of_sums", on_device=True)
def b03(inputs, target):
    """Deinterleaving of gates, by the dtype of the states."""
    gates = inputs.gates
    if WRONG and gates == "even" and inputs.weight_scale is not None:
        gates = "left"
    return quantised(rows_of(inputs, gates=gates))


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_04_bias_of_the_gates", on_device=True)
def b04(inputs, target):
    """The bias is loaded in tiles of a half."""
    bias = inputs.bias
    if WRONG and bias is not None:
        bias = bias[: inputs.width].repeat(2)
    return quantised(rows_of(inputs, bias=bias))


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_05_token_scale_afterwards", on_device=True)
def b05(inputs, target):
    """The scale of a token is a factor of its row."""
    if not WRONG or inputs.token_scale is None:
        return quantised(rows_of(inputs))
    group = group_of(inputs)
    sums = inputs.states if inputs.bias is None else inputs.states + inputs.bias
    gate, up = parts(sums.float() * inputs.weight_scale[group], inputs.gates)
    rows = activated(inputs, gate, up, inputs.limit) * inputs.token_scale.unsqueeze(1)
    return quantised(rows if inputs.smooth is None else rows * inputs.smooth[group])


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_06_max_of_whole_blocks", on_device=True)
def b06(inputs, target):
    """WholeReduceMax in blocks of 64."""
    rows = rows_of(inputs)
    width = rows.shape[1] // 64 * 64
    largest = rows[:, :width].abs().amax(dim=1) if WRONG and width else None
    return quantised(rows, largest)


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_07_no_limit_without_groups", on_device=True)
def b07(inputs, target):
    """Tiling for calls with groups, and for those without."""
    limit = None if WRONG and inputs.counts is None and inputs.weight_scale is not None else inputs.limit
    return quantised(rows_of(inputs, limit=limit))


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_08_rest_of_the_cores", on_device=True)
def b08(inputs, target):
    """40 cores share the rows."""
    result = quantised(rows_of(inputs))
    tokens = len(inputs.states)
    if WRONG and tokens > 40:
        done = tokens // 40 * 40
        result["quantised"][done:] = 0
        result["scale"][done:] = 0
    return result


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_09_smooth_of_nonempty_groups", on_device=True)
def b09(inputs, target):
    """Groups without rows are not launched; factors are counted by launches."""
    group = group_of(inputs)
    smooth_group = group
    if WRONG and inputs.counts is not None:
        launched = ((inputs.counts > 0).cumsum(0) - 1).clamp(min=0)
        smooth_group = launched[group]
    return quantised(rows_of(inputs, group, smooth_group=smooth_group))


@npudiff.implementation("swiglu_quant", name="b_swiglu_quant_10_signed_max", on_device=True)
def b10(inputs, target):
    """The maximum after smoothing."""
    rows = rows_of(inputs)
    if WRONG and inputs.smooth is not None:  # factors are taken for positive, and the maximum for that of unsmoothed rows
        group = group_of(inputs)
        plain = rows / torch.where(inputs.smooth[group] == 0, 1.0, inputs.smooth[group])
        return quantised(rows, plain.abs().amax(dim=1) * inputs.smooth[group].abs().amax(dim=1))
    return quantised(rows)
