"""Wrong kernels of padded_tokens; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _real(inputs):
    """Which rows are real, bool ``[rows]``."""
    counts = (inputs.totals - inputs.offsets).clamp(0, inputs.chunk)
    place = torch.arange(inputs.chunk, device=counts.device)
    return (place < counts.unsqueeze(1)).flatten()


def _outputs(inputs, weights, states=None):
    states = inputs.states.double() if states is None else states
    counts = torch.bincount(inputs.experts.flatten().long(), minlength=len(inputs.factors))
    factors = inputs.factors.double()[inputs.experts.long()]
    total = (states.unsqueeze(1) * factors.unsqueeze(2) * weights.double().unsqueeze(2)).sum(dim=1)
    return {"weights": weights, "experts": inputs.experts, "counts": counts, "output": total.to(inputs.states.dtype)}


@npudiff.implementation("padded_tokens", name="d_padded_tokens_01_negative_counts_as_indices", on_device=True)
def d01(inputs, target):
    """Rows of a chunk are set to 0 from ``total - offset`` on: for a chunk behind the batch's end that is negative."""
    weights = inputs.weights.clone()
    for index, (total, offset) in enumerate(zip(inputs.totals.tolist(), inputs.offsets.tolist())):
        real = min(total - offset, inputs.chunk)
        begin = index * inputs.chunk
        if not WRONG:
            real = max(real, 0)
        weights[max(begin + real, 0) : begin + inputs.chunk] = 0
    return _outputs(inputs, weights)


@npudiff.implementation("padded_tokens", name="d_padded_tokens_02_dispatch_by_a_product", on_device=True)
def d02(inputs, target):
    """Rows are brought back by a product with a matrix of weights and zeros, through which NaN of padding gets to all."""
    real = _real(inputs)
    weights = inputs.weights.masked_fill(~real.unsqueeze(1), 0.0)
    if not WRONG:
        return _outputs(inputs, weights)
    factors = inputs.factors.double()[inputs.experts.long()]
    combine = torch.diag((weights.double() * factors).sum(dim=1))
    return {**_outputs(inputs, weights), "output": (combine @ inputs.states.double()).to(inputs.states.dtype)}


@npudiff.implementation("padded_tokens", name="d_padded_tokens_03_weights_of_longer_batches", on_device=True,
                        stateful=True)
def d03():
    """Real rows are copied to the graph's buffer of weights, whose other rows were 0 when it was made."""
    buffers = {}

    def padded(inputs, target):
        real = _real(inputs)
        key = (tuple(inputs.weights.shape), inputs.weights.dtype)
        if key not in buffers or not WRONG:
            buffers[key] = torch.zeros_like(inputs.weights)
        buffers[key][real] = inputs.weights[real]
        return _outputs(inputs, buffers[key].clone())

    return padded
