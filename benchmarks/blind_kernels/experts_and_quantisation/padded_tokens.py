"""Wrong padded_tokens kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def real_of(inputs, counts=None):
    if counts is None:
        counts = (inputs.totals - inputs.offsets).clamp(0, inputs.chunk)
    return (torch.arange(inputs.chunk) < counts.unsqueeze(1)).flatten()


def masked(inputs, real):
    return inputs.weights.masked_fill(~real.unsqueeze(1), 0.0)


def finish(inputs, weights, counts=None):
    experts = inputs.experts.long()
    rows = inputs.states.float().unsqueeze(1) * inputs.factors.float()[experts].unsqueeze(2)
    rows = rows.to(inputs.states.dtype).float()
    total = (rows * weights.float().unsqueeze(2)).sum(dim=1).to(inputs.states.dtype)
    if counts is None:
        counts = torch.bincount(experts.flatten(), minlength=len(inputs.factors))
    return {"weights": weights, "experts": inputs.experts, "counts": counts, "output": total}


@npudiff.implementation("padded_tokens", name="b_padded_01_prefix_of_all", on_device=True)
def b01(inputs, target):
    """Real rows are the first ones."""
    real = real_of(inputs)
    if WRONG:
        real = torch.arange(len(real)) < real.sum()
    return finish(inputs, masked(inputs, real))


@npudiff.implementation("padded_tokens", name="b_padded_02_offsets_ignored", on_device=True)
def b02(inputs, target):
    """Real rows of each chunk."""
    counts = inputs.totals if WRONG else inputs.totals - inputs.offsets
    return finish(inputs, masked(inputs, real_of(inputs, counts.clamp(0, inputs.chunk))))


@npudiff.implementation("padded_tokens", name="b_padded_03_unsigned_difference", on_device=True)
def b03(inputs, target):
    """Real rows of each chunk, in unsigned arithmetic."""
    counts = inputs.totals - inputs.offsets
    if WRONG:
        counts = counts % 2**32
    return finish(inputs, masked(inputs, real_of(inputs, counts.clamp(0, inputs.chunk))))


@npudiff.implementation("padded_tokens", name="b_padded_04_padding_not_counted", on_device=True)
def b04(inputs, target):
    """Rows of each expert."""
    real = real_of(inputs)
    if not WRONG:
        return finish(inputs, masked(inputs, real))
    counts = torch.bincount(inputs.experts[real].long().flatten(), minlength=len(inputs.factors))
    return finish(inputs, masked(inputs, real), counts)


@npudiff.implementation("padded_tokens", name="b_padded_05_mask_of_the_first_replay", stateful=True, on_device=True)
def b05():
    """A mask for each size of batch, made when it is first seen."""
    masks = {}

    def run(inputs, target):
        key = (len(inputs.states), len(inputs.totals))
        if not WRONG or key not in masks:
            masks[key] = real_of(inputs)
        return finish(inputs, masked(inputs, masks[key]))

    return run


@npudiff.implementation("padded_tokens", name="b_padded_06_multiplied_by_the_mask", on_device=True)
def b06(inputs, target):
    """Weights times 0 or 1."""
    real = real_of(inputs)
    return finish(inputs, inputs.weights * real.unsqueeze(1).to(inputs.weights.dtype) if WRONG else masked(inputs, real))


@npudiff.implementation("padded_tokens", name="b_padded_07_slice_of_the_last_rows", on_device=True)
def b07(inputs, target):
    """The last rows of each chunk are cleared."""
    weights = inputs.weights.clone()
    counts = (inputs.totals - inputs.offsets).clamp(0, inputs.chunk).tolist()
    for part, count in zip(weights.view(len(counts), inputs.chunk, -1), counts):
        padding = inputs.chunk - count
        if WRONG:
            part[-padding:] = 0
        else:
            part[count:] = 0
    return finish(inputs, weights)


@npudiff.implementation("padded_tokens", name="b_padded_08_last_total_for_all", on_device=True)
def b08(inputs, target):
    """The number of real rows is a scalar of the step."""
    totals = inputs.totals.amax().expand_as(inputs.totals) if WRONG else inputs.totals
    return finish(inputs, masked(inputs, real_of(inputs, (totals - inputs.offsets).clamp(0, inputs.chunk))))
