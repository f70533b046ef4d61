"""Wrong kernels of decoder_layer; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.reference.decoder_layer import layer as _layer
from npudiff.reference.decoder_layer.experts import said_by_experts as _said
from npudiff.reference.inexact import Inexact as _Inexact
from npudiff.reference.moe_finalize import weighted_sum as _weighted_sum
from npudiff.reference.moe_gating import MoeGatingInputs as _Gating
from npudiff.reference.moe_gating import chosen_experts as _chosen
from npudiff.reference.spread import Spread as _Spread
from npudiff.reference.spread import linear as _linear
from npudiff.reference.spread import normed as _normed

WRONG = os.environ.get("TWIN") != "1"
NAME = "decoder_layer"


def _experts(inputs, states, biased):
    """The mixture; with ``biased``, weights are of the scores that the choice is made by."""
    experts, dtype = inputs.experts, inputs.hidden.dtype
    logits = _linear(states, experts.router.to(torch.float64), torch.float32).value
    choice = _chosen(
        _Gating(logits.float(), experts.bias, experts.top_k, "sigmoid", experts.groups, experts.kept_groups,
                renormalise=True, scaling=experts.scaling),
        _Inexact.exact(logits),
    )  # fmt: skip
    scores = torch.sigmoid(logits)
    if biased:
        scores = scores + experts.bias.to(torch.float64)
    weights = scores.gather(1, choice.experts)
    weights = _Inexact.exact(weights / weights.sum(dim=-1, keepdim=True) * experts.scaling)
    rows = _said(states, choice.experts, experts.routed, dtype)
    shared = _said(states, torch.zeros(len(logits), 1, dtype=torch.int64), experts.shared, dtype).inexact
    skip = _Inexact(shared.value[:, 0], shared.error[:, 0])
    return _weighted_sum(_Inexact(rows.value, rows.independent), weights, skip, dtype, rows.brought).value


def _forward(inputs, *, seen_of=None, decodes_first=False, biased=False):
    """The layer in float64, rounded once at the end."""
    dtype, kind = inputs.hidden.dtype, "plain" if inputs.latent else "gemma"
    residual = _Spread.exact(inputs.hidden).plus(_Spread.exact(inputs.residual))
    attention = _layer._attention(inputs, _normed(residual, inputs.input_norm, kind, inputs.epsilon, dtype))
    attended = torch.zeros_like(residual.value)
    parts, start = iter(_layer._parts(inputs)), 0
    for step in inputs.steps:
        results = []
        for new, total in zip(step.query_lengths, step.kv_lengths, strict=True):
            queries, keys, seen = next(parts)
            seen = seen if seen_of is None else seen_of(seen, new, total)
            results.append(attention.rows(queries, keys, seen).value)
        if decodes_first:
            results.sort(key=lambda rows: len(rows) > 1)
        attended[start : start + step.tokens] = torch.cat(results)
        start += step.tokens
    residual = residual.plus(_Spread.exact(attended))
    hidden = _experts(inputs, _normed(residual, inputs.post_norm, kind, inputs.epsilon, dtype), biased)
    values = {"keys": attention.keys, "values": attention.values, "residual": residual}
    return {**{name: rows.value.to(dtype) for name, rows in values.items()}, "hidden": hidden.to(dtype)}


@npudiff.implementation(NAME, name="c_decoder_layer_01_decodes_first", on_device=True)
def c01(inputs, target):
    """In a mixed step, decodes are attended before prefills, and the outputs are left in that order."""
    return _forward(inputs, decodes_first=WRONG)


@npudiff.implementation(NAME, name="c_decoder_layer_02_weights_of_biased_scores", on_device=True)
def c02(inputs, target):
    """Experts have the scores as weights that they were chosen by, with the correction bias in them."""
    return _forward(inputs, biased=WRONG)


@npudiff.implementation(NAME, name="c_decoder_layer_03_history_of_the_last_row", on_device=True)
def c03(inputs, target):
    """Of the history, a chunk of a windowed layer gathers what its last row sees, and its first rows lack some keys."""

    def seen_of(seen, new, total):
        if inputs.window is None or not WRONG:
            return seen
        key = torch.arange(total)
        return seen & ((key >= total - inputs.window) | (key >= total - new))

    return _forward(inputs, seen_of=seen_of)
