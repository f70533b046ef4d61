"""Wrong kernels of swiglu_quant; TWIN=1 runs the same code without the mistakes."""
import os

import torch
from e_base import activated, halves, quantised

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def group_of_rows(inputs, *, of_those_with_rows=False):
    group = torch.zeros(len(inputs.states), dtype=torch.int64)
    if inputs.counts is not None:
        counts = inputs.counts[inputs.counts > 0] if of_those_with_rows else inputs.counts
        group[: int(counts.sum())] = torch.arange(len(counts)).repeat_interleave(counts)
    return group


def computed(inputs, *, group=None, weight_scale=None, sums=None, late_smooth=False):
    group = group_of_rows(inputs) if group is None else group
    wide = inputs.states.double()
    if inputs.weight_scale is not None:
        if inputs.bias is not None:
            wide = wide + inputs.bias.double()
        wide = wide if sums is None else sums(wide)
        scale = inputs.weight_scale if weight_scale is None else weight_scale
        wide = wide * scale[group].double() * inputs.token_scale.double().unsqueeze(1)
    gate, up = halves(wide, "interleaved" if inputs.gates == "even" else "halves")
    if inputs.gates == "right":
        gate, up = up, gate
    rows = activated(gate, up, inputs.activation, inputs.limit, inputs.alpha, inputs.glu_bias)
    smooth = 1.0 if inputs.smooth is None else inputs.smooth[group].double()
    if late_smooth:
        scale = rows.abs().amax(dim=1) / 127
        steps = rows * smooth / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        whole = steps.round().clamp(-127, 127)
    else:
        whole, scale = quantised(rows * smooth)
    return {"quantised": whole.nan_to_num(0.0).to(torch.int8), "scale": scale.float()}


@npudiff.implementation("swiglu_quant", name="e_swiglu_quant_01_empty_groups_not_numbered", on_device=True)
def e01(inputs, target):
    """Groups without rows are left out before the others are numbered, and scales are taken by that number."""
    return computed(inputs, group=group_of_rows(inputs, of_those_with_rows=WRONG))


@npudiff.implementation("swiglu_quant", name="e_swiglu_quant_02_scales_of_the_other_half", on_device=True)
def e02(inputs, target):
    """Where gates are on the right, both halves of the sums are exchanged as they are loaded, but not their scales."""
    scale = inputs.weight_scale
    if WRONG and scale is not None and inputs.gates == "right":
        scale = scale.roll(inputs.width, dims=1)
    return computed(inputs, weight_scale=scale)


@npudiff.implementation("swiglu_quant", name="e_swiglu_quant_03_scale_before_smoothing", on_device=True)
def e03(inputs, target):
    """The largest element is that of the activation, before it is smoothed."""
    return computed(inputs, late_smooth=WRONG)


@npudiff.implementation("swiglu_quant", name="e_swiglu_quant_04_sums_as_float16", on_device=True)
def e04(inputs, target):
    """In a model of float16 the sums are cast to float16 before they are scaled, and saturate at 65,504."""

    def sums(wide):
        return wide.clamp(-65504, 65504) if WRONG and inputs.dtype == torch.float16 else wide

    return computed(inputs, sums=sums)
