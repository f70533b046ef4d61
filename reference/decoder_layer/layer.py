"""The layer in float64: norm, attention over what was cached, norm, experts; with the bound carried through."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.decoder_layer.experts import said_by_experts
from npudiff.reference.decoder_layer.grouped_query import GroupedQueryAttention
from npudiff.reference.decoder_layer.inputs import DecoderLayerInputs, GroupedQueryWeights, check_inputs
from npudiff.reference.decoder_layer.latent import LatentAttention
from npudiff.reference.inexact import Inexact
from npudiff.reference.inexact_attention import visible
from npudiff.reference.moe_finalize import weighted_sum
from npudiff.reference.moe_gating import MoeGatingInputs, chosen_experts
from npudiff.reference.spread import Spread, linear, normed


def decoder_layer(inputs: DecoderLayerInputs) -> dict[str, Expected]:
    """Return what every step writes to the cache, and what it hands to the next layer.

    With ``r = hidden + residual``: ``residual' = r + attention(norm(r))`` and ``hidden' = experts(norm(residual'))``,
    the pre-norm layer of Step-3.5 and DeepSeek-V3. Which requests are together in a step, and where a request is cut
    into steps, does not matter: a token sees the keys of its request that are at most at its own position, and within
    the window.

    Returns
    -------
    dict
        ``keys`` and ``values``: bfloat16 ``[tokens, kv_heads, dim]``, what the token's slot holds afterwards (with
        latents: ``[tokens, 1, latent_dim]`` and the rope keys). ``residual`` and ``hidden``: bfloat16 ``[tokens,
        hidden_size]``.

    Raises
    ------
    ValueError
        If lengths, positions, slots and tables contradict each other.

    Notes
    -----
    A correct device rounds to bfloat16 whatever it hands from one operator to the next: the sum with the residual,
    norms, projections, rotated heads, cached keys and values, attention weights and outputs, gates, experts, and their
    sum. It accumulates in float32. Where it may choose other experts, its hidden states are not specified; residual and
    cache are.
    """
    check_inputs(inputs)
    dtype = inputs.hidden.dtype
    residual = Spread.exact(inputs.hidden).plus(Spread.exact(inputs.residual)).rounded(dtype)
    kind = "plain" if inputs.latent else "gemma"
    states = normed(residual, inputs.input_norm, kind, inputs.epsilon, dtype)
    attention = _attention(inputs, states)
    attended = [attention.rows(queries, keys, seen) for queries, keys, seen in _parts(inputs)]
    order = torch.cat([queries for queries, _, _ in _parts(inputs)])
    value, scale = (torch.cat([getattr(part, name) for part in attended]) for name in ("value", "independent"))
    back = torch.argsort(order)
    residual = residual.plus(Spread.of(value[back], scale[back])).rounded(dtype)
    hidden = _experts(inputs, normed(residual, inputs.post_norm, kind, inputs.epsilon, dtype))
    return {
        "keys": attention.keys.expected(dtype),
        "values": attention.values.expected(dtype),
        "residual": residual.expected(dtype),
        "hidden": Expected(hidden.value, hidden.error, dtype),
    }


def _attention(inputs: DecoderLayerInputs, states: Spread) -> GroupedQueryAttention | LatentAttention:
    if isinstance(inputs.attention, GroupedQueryWeights):
        return GroupedQueryAttention(inputs, inputs.attention, states)
    return LatentAttention(inputs, inputs.attention, states)


def _parts(inputs: DecoderLayerInputs) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each request in each step: its new rows, the rows of all its tokens so far, and which of these each sees."""
    tokens: dict[int, list[int]] = {}
    start = 0
    for step in inputs.steps:
        for request, new, total in zip(step.requests, step.query_lengths, step.kv_lengths, strict=True):
            rows = tokens.setdefault(request, [])
            rows.extend(range(start, start + new))
            start += new
            yield torch.tensor(rows[-new:]), torch.tensor(rows), visible(new, total, inputs.window)


def _experts(inputs: DecoderLayerInputs, states: Spread) -> Inexact:
    """Sum of the routed experts and the shared one; infinitely uncertain where others may be chosen."""
    experts, dtype = inputs.experts, inputs.hidden.dtype
    logits = linear(states, experts.router.to(torch.float64), torch.float32).bounded
    choice = chosen_experts(
        MoeGatingInputs(
            logits=logits.value.to(torch.float32),
            bias=experts.bias,
            top_k=experts.top_k,
            scoring="sigmoid",
            groups=experts.groups,
            kept_groups=experts.kept_groups,
            renormalise=True,
            scaling=experts.scaling,
        ),
        logits,
    )
    weights = choice.weights.in_float32().rounded(dtype)
    rows = said_by_experts(states, choice.experts, experts.routed, dtype)
    everyone = torch.zeros(len(states.value), 1, dtype=torch.int64)
    shared = said_by_experts(states, everyone, experts.shared, dtype).inexact
    skip = Inexact(shared.value[:, 0], shared.error[:, 0])
    total = weighted_sum(Inexact(rows.value, rows.independent), weights, skip, dtype, rows.brought)
    return Inexact(total.value, total.error.masked_fill(choice.unsure.unsqueeze(1), torch.inf))
