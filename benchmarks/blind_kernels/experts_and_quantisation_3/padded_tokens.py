"""Wrong kernels of padded_tokens; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def real_of(inputs, counts):
    return (torch.arange(inputs.chunk).unsqueeze(0) < counts.unsqueeze(1)).flatten()


def counts_of(inputs):
    return (inputs.totals - inputs.offsets).clamp(0, inputs.chunk)


def outputs(inputs, weights):
    experts = inputs.experts.long()
    factor = (weights.double() * inputs.factors.double()[experts]).sum(dim=1, keepdim=True)
    return {
        "weights": weights,
        "experts": inputs.experts.clone(),
        "counts": torch.bincount(experts.flatten(), minlength=len(inputs.factors)),
        "output": (factor * inputs.states.double()).to(inputs.states.dtype),
    }


@npudiff.implementation("padded_tokens", name="e_padded_tokens_01_weights_times_zero", on_device=True)
def e01(inputs, target):
    """Weights of padded rows are multiplied by 0, which leaves NaN where padding has NaN or infinity."""
    real = real_of(inputs, counts_of(inputs)).unsqueeze(1)
    weights = inputs.weights.masked_fill(~real, 0.0)
    if WRONG:
        weights = torch.where(real, inputs.weights, inputs.weights * 0.0 + 0.0)
    return outputs(inputs, weights)


@npudiff.implementation("padded_tokens", name="e_padded_tokens_02_negative_slice", on_device=True)
def e02(inputs, target):
    """A chunk behind the end of its batch has fewer than 0 real rows, and a slice from there keeps its first ones."""
    weights = inputs.weights.clone()
    counts = inputs.totals - inputs.offsets if WRONG else counts_of(inputs)
    for chunk, count in enumerate(counts.tolist()):
        weights[chunk * inputs.chunk : (chunk + 1) * inputs.chunk][count:] = 0.0
    return outputs(inputs, weights)


@npudiff.implementation("padded_tokens", name="e_padded_tokens_03_real_rows_in_front", on_device=True)
def e03(inputs, target):
    """Of a buffer that was gathered from several ranks, as many rows are real as all chunks have, from the first one."""
    counts = counts_of(inputs)
    real = torch.arange(len(inputs.states)) < counts.sum() if WRONG else real_of(inputs, counts)
    return outputs(inputs, inputs.weights.masked_fill(~real.unsqueeze(1), 0.0))
