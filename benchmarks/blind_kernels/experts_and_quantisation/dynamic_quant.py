"""Wrong dynamic_quant kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def expert_of(inputs, right=True):
    token = torch.arange(len(inputs.states))
    return torch.bucketize(token, inputs.expert_ends.long(), right=right).clamp(max=len(inputs.expert_ends) - 1)


def smoothed(inputs, experts=None):
    states = inputs.states.float()
    if inputs.smooth is None:
        return states
    if inputs.expert_ends is None:
        return states * inputs.smooth.float()
    return states * inputs.smooth.float()[expert_of(inputs) if experts is None else experts]


def quantised(rows, bits, largest=None, levels=None, clamp=True):
    levels = (2 ** (bits - 1) - 1) if levels is None else levels
    largest = rows.abs().amax(dim=1) if largest is None else largest
    scale = largest / levels
    safe = torch.where(scale == 0, 1.0, scale).unsqueeze(1)
    whole = torch.round(rows / safe)
    if clamp:
        whole = whole.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {"quantised": whole.to(torch.int32).to(torch.int8), "scale": scale}


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_01_max_without_abs", on_device=True)
def b01(inputs, target):
    """ReduceMax of a row."""
    rows = smoothed(inputs)
    return quantised(rows, inputs.bits, rows.amax(dim=1).clamp(min=1e-8) if WRONG else None)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_02_eps", on_device=True)
def b02(inputs, target):
    """The largest element is kept away from 0."""
    rows = smoothed(inputs)
    largest = rows.abs().amax(dim=1)
    return quantised(rows, inputs.bits, largest.clamp(min=1e-4) if WRONG else largest)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_03_truncated", on_device=True)
def b03(inputs, target):
    """The cast to integers."""
    rows = smoothed(inputs)
    result = quantised(rows, inputs.bits)
    if WRONG:
        safe = torch.where(result["scale"] == 0, 1.0, result["scale"]).unsqueeze(1)
        result["quantised"] = (rows / safe * (1 + 1e-6)).trunc().to(torch.int8)
    return result


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_04_scale_in_model_dtype", on_device=True)
def b04(inputs, target):
    """Scales of smoothed rows."""
    rows = smoothed(inputs)
    if WRONG and inputs.smooth is not None:
        return quantised(rows, inputs.bits, (inputs.states * inputs.smooth[expert_of(inputs) if inputs.expert_ends is not None else [0]]).abs().amax(dim=1).float())
    return quantised(rows, inputs.bits)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_05_int4_uses_eight", on_device=True)
def b05(inputs, target):
    """Four bits have sixteen levels."""
    return quantised(smoothed(inputs), inputs.bits, levels=7.5 if WRONG and inputs.bits == 4 else None)


def tree_max(rows):
    rows = rows.abs()
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        rest = rows[:, 2 * half :]
        folded = torch.maximum(rows[:, :half], rows[:, half : 2 * half])
        rows = folded if WRONG else torch.cat([folded, rest], dim=1)
    return rows[:, 0]


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_06_tree_drops_odd", on_device=True)
def b06(inputs, target):
    """The maximum by halving."""
    rows = smoothed(inputs)
    return quantised(rows, inputs.bits, tree_max(rows))


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_07_row_at_the_end", on_device=True)
def b07(inputs, target):
    """The expert of a row by binary search."""
    if inputs.expert_ends is None:
        return quantised(smoothed(inputs), inputs.bits)
    return quantised(smoothed(inputs, expert_of(inputs, right=not WRONG)), inputs.bits)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_08_empty_expert_compacted", on_device=True)
def b08(inputs, target):
    """The number of a group goes up where rows change their expert."""
    if inputs.expert_ends is None:
        return quantised(smoothed(inputs), inputs.bits)
    experts = expert_of(inputs)
    if WRONG and len(experts):
        experts = torch.cat([experts.new_zeros(1), (experts.diff() > 0).cumsum(0)])
    return quantised(smoothed(inputs, experts), inputs.bits)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_09_last_tile_only", on_device=True)
def b09(inputs, target):
    """Rows wider than the buffer go in tiles of 4096."""
    rows = smoothed(inputs)
    largest = None
    for tile in torch.split(rows.abs(), 4096, dim=1):
        new = tile.amax(dim=1)
        largest = new if largest is None or WRONG else torch.maximum(largest, new)
    return quantised(rows, inputs.bits, largest)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_10_rows_in_pairs", on_device=True)
def b10(inputs, target):
    """Two rows for each program; the smaller factor rows are loaded once for both."""
    if inputs.expert_ends is None or not len(inputs.states):
        return quantised(smoothed(inputs), inputs.bits)
    experts = expert_of(inputs)
    if WRONG:
        experts = experts[torch.arange(len(experts)) // 2 * 2]
    return quantised(smoothed(inputs, experts), inputs.bits)


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_11_workspace_not_cleared", stateful=True, on_device=True)
def b11():
    """Maxima by atomics, in a workspace that is kept for each number of rows."""
    kept = {}

    def run(inputs, target):
        rows = smoothed(inputs)
        largest = rows.abs().amax(dim=1)
        if WRONG:
            key = rows.shape
            kept[key] = torch.maximum(largest, kept[key]) if key in kept else largest
            largest = kept[key]
        return quantised(rows, inputs.bits, largest)

    return run


@npudiff.implementation("dynamic_quant", name="b_dynamic_quant_12_half_reciprocal_underflow", on_device=True)
def b12(inputs, target):
    """Large rows of float16: the step goes through half, and is 0 for rows that are small."""
    rows = smoothed(inputs)
    result = quantised(rows, inputs.bits)
    if WRONG and inputs.states.dtype == torch.float16:
        tiny = result["scale"] < 2.0**-14  # subnormal in half, flushed
        result["quantised"] = torch.where(tiny.unsqueeze(1), torch.zeros_like(result["quantised"]), result["quantised"])
    return result
