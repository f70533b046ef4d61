"""Wrong kernels of dynamic_quant; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def smoothed(inputs, *, right=True):
    wide = inputs.states.double()
    if inputs.smooth is None:
        return wide
    if inputs.expert_ends is None:
        return wide * inputs.smooth.double()
    row = torch.arange(len(wide))
    expert = torch.searchsorted(inputs.expert_ends.long().contiguous(), row, right=right)
    return wide * inputs.smooth[expert.clamp(max=len(inputs.smooth) - 1)].double()


def finish(wide, scale, levels, least=None):
    steps = wide / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    least = -levels if least is None else least
    return {"quantised": steps.round().clamp(least, levels).to(torch.int8), "scale": scale.float()}


def levels_of(inputs):
    return 127 if inputs.bits == 8 else 7


@npudiff.implementation("dynamic_quant", name="e_dynamic_quant_01_first_row_of_expert", on_device=True)
def e01(inputs, target):
    """A row belongs to the first expert whose end is not below it: the first row of each gets the factors before."""
    wide, levels = smoothed(inputs, right=not WRONG), levels_of(inputs)
    return finish(wide, wide.abs().amax(dim=1) / levels, levels)


@npudiff.implementation("dynamic_quant", name="e_dynamic_quant_02_minus_eight", on_device=True)
def e02(inputs, target):
    """Of four bits the smallest integer is used as well: a row whose largest element is negative is divided by 8."""
    wide, levels = smoothed(inputs), levels_of(inputs)
    largest = wide.abs().amax(dim=1)
    if WRONG and inputs.bits == 4:
        negative = -wide.amin(dim=1) > wide.amax(dim=1)
        return finish(wide, torch.where(negative, largest / 8, largest / 7), 7, -8)
    return finish(wide, largest / levels, levels)


@npudiff.implementation("dynamic_quant", name="e_dynamic_quant_03_maximum_of_whole_repeats", on_device=True)
def e03(inputs, target):
    """The maximum is taken over whole repeats of 64 elements; what is behind them is quantised, but not looked at."""
    wide, levels = smoothed(inputs), levels_of(inputs)
    width = wide.shape[1]
    looked = wide[:, : width // 64 * 64] if WRONG and width > 64 else wide
    return finish(wide, looked.abs().amax(dim=1) / levels, levels)


@npudiff.implementation("dynamic_quant", name="e_dynamic_quant_04_least_maximum", on_device=True)
def e04(inputs, target):
    """The maximum of a row is at least 1e-5, so that nothing is divided by zero."""
    wide, levels = smoothed(inputs), levels_of(inputs)
    largest = wide.abs().amax(dim=1)
    if WRONG:
        largest = torch.where(largest > 0, largest.clamp(min=1e-5), largest)
    return finish(wide, largest / levels, levels)


@npudiff.implementation("dynamic_quant", name="e_dynamic_quant_05_quotient_in_states_dtype", on_device=True)
def e05(inputs, target):
    """The scale is cast to the dtype of the states before it divides, and so is the quotient."""
    wide, levels, dtype = smoothed(inputs), levels_of(inputs), inputs.states.dtype
    scale = wide.abs().amax(dim=1) / levels
    outputs = finish(wide, scale, levels)
    if WRONG:
        narrow = scale.to(dtype).double()
        usable = narrow > 0
        steps = (wide / torch.where(usable, narrow, 1.0).unsqueeze(1)).to(dtype).double()
        cut = steps.round().clamp(-levels, levels).to(torch.int8)
        outputs["quantised"] = torch.where(usable.unsqueeze(1), cut, outputs["quantised"])
    return outputs


@npudiff.implementation("dynamic_quant", name="e_dynamic_quant_06_grid_of_65535", on_device=True)
def e06(inputs, target):
    """The grid has one program per row, is cut to 65,535, and nobody computes the rows behind."""
    wide, levels = smoothed(inputs), levels_of(inputs)
    outputs = finish(wide, wide.abs().amax(dim=1) / levels, levels)
    if WRONG:
        for output in outputs.values():
            output[65535:] = 0
    return outputs
