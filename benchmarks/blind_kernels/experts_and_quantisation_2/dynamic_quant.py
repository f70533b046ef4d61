"""Wrong kernels of dynamic_quant; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _smoothed(inputs, expert=None):
    """States times their factors, float64."""
    states = inputs.states.double()
    if inputs.smooth is None:
        return states
    factor = inputs.smooth.double()
    if inputs.expert_ends is not None:
        if expert is None:
            token = torch.arange(len(states), device=states.device)
            expert = torch.bucketize(token, inputs.expert_ends.long(), right=True)
        factor = factor[expert]
    return states * factor


def _levels(inputs):
    return 127 if inputs.bits == 8 else 7


def _steps(states, scale, levels):
    """The integers of rows, by scales ``[tokens]``; rows of zeros have zeros."""
    safe = torch.where(scale == 0, 1.0, scale).unsqueeze(1)
    return (states / safe).nan_to_num(0.0, levels, -levels).round().clamp(-levels, levels).to(torch.int8)


@npudiff.implementation("dynamic_quant", name="d_dynamic_quant_01_scale_in_the_dtype_of_states", on_device=True)
def d01(inputs, target):
    """The largest element is divided by the levels in the dtype of the states, and widened afterwards."""
    states, levels = _smoothed(inputs), _levels(inputs)
    scale = states.abs().amax(dim=1) / levels
    if WRONG:
        scale = scale.to(inputs.states.dtype).double()
    return {"quantised": _steps(states, scale, levels), "scale": scale.float()}


@npudiff.implementation("dynamic_quant", name="d_dynamic_quant_02_reciprocal_in_float16", on_device=True)
def d02(inputs, target):
    """The reciprocal of the scale, by which rows are multiplied, is float16; the scale that is returned is right."""
    states, levels = _smoothed(inputs), _levels(inputs)
    scale = states.abs().amax(dim=1) / levels
    safe = torch.where(scale == 0, 1.0, scale)
    factor = 1 / safe
    if WRONG:
        factor = factor.half().double()
    steps = (states * factor.unsqueeze(1)).nan_to_num(0.0, levels, -levels).round().clamp(-levels, levels)
    return {"quantised": steps.to(torch.int8), "scale": scale.float()}


@npudiff.implementation("dynamic_quant", name="d_dynamic_quant_03_one_expert_further_for_each_row", on_device=True)
def d03(inputs, target):
    """At the end of an expert's rows the next one's factors are taken, without asking whether that one has any rows."""
    expert = None
    if WRONG and inputs.smooth is not None and inputs.expert_ends is not None:
        ends, current, of_rows = inputs.expert_ends.tolist(), 0, []
        for row in range(len(inputs.states)):
            if row >= ends[current] and current < len(ends) - 1:
                current += 1
            of_rows.append(current)
        expert = torch.tensor(of_rows, dtype=torch.int64, device=inputs.states.device)
    states, levels = _smoothed(inputs, expert), _levels(inputs)
    scale = states.abs().amax(dim=1) / levels
    return {"quantised": _steps(states, scale, levels), "scale": scale.float()}


@npudiff.implementation("dynamic_quant", name="d_dynamic_quant_04_last_tile_begins_earlier", on_device=True)
def d04(inputs, target):
    """The last tile of eight rows begins earlier so that it is full; its scales are written where it would have begun."""
    states, levels = _smoothed(inputs), _levels(inputs)
    scale = states.abs().amax(dim=1) / levels
    written = scale.clone()
    tokens, rest = len(states), len(states) % 8
    if WRONG and tokens > 8 and rest:
        written[tokens - rest :] = scale[tokens - 8 : tokens - 8 + rest]
    return {"quantised": _steps(states, scale, levels), "scale": written.float()}


@npudiff.implementation("dynamic_quant", name="d_dynamic_quant_05_255_repeats", on_device=True)
def d05(inputs, target):
    """The largest element is looked for by one instruction, which takes 255 repeats of 64 elements at most."""
    states, levels = _smoothed(inputs), _levels(inputs)
    seen = states[:, : 255 * 64] if WRONG else states
    scale = seen.abs().amax(dim=1) / levels
    return {"quantised": _steps(states, scale, levels), "scale": scale.float()}


@npudiff.implementation("dynamic_quant", name="d_dynamic_quant_06_least_scale", on_device=True)
def d06(inputs, target):
    """The largest element is taken for 1e-5 where it is smaller, so that nothing is divided by 0."""
    states, levels = _smoothed(inputs), _levels(inputs)
    largest = states.abs().amax(dim=1)
    if WRONG:
        largest = largest.clamp(min=1e-5)
    scale = largest / levels
    return {"quantised": _steps(states, scale, levels), "scale": scale.float()}
