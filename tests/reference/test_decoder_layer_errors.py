"""Where errors come from inside a layer, one source at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from even import evenly
from npudiff.properties.decoder_layer import DecoderLayerCase, LayerRequest
from npudiff.properties.decoder_layer.inputs import build_inputs
from npudiff.reference.decoder_layer import decoder_layer, experts, layer
from npudiff.reference.decoder_layer.experts import said_by_experts
from npudiff.reference.decoder_layer.grouped_query import GroupedQueryAttention
from npudiff.reference.decoder_layer.latent import LatentAttention
from npudiff.reference.inexact import Inexact
from npudiff.reference.inexact_attention import projected_attention, visible
from npudiff.reference.linear import product
from npudiff.reference.spread import EVEN, Spread, rounding_scale

CASE = DecoderLayerCase((LayerRequest(0, 6),), group=2, top_k=2, seed=8)
ROWS = torch.arange(6)


def attention_of(dtype, case=CASE, kind=GroupedQueryAttention):
    inputs = build_inputs(case)
    inputs = replace(inputs, hidden=inputs.hidden.to(dtype))
    return inputs, kind(inputs, inputs.attention, Spread.exact(inputs.hidden))


def gated(attention, gate, error):
    vars(attention)["_gate"] = Inexact(gate, error)
    return attention.rows(ROWS, ROWS, visible(6, 6, None))


def test_errors_of_gates_come_out_as_in_many_runs():
    _, attention = attention_of(torch.float32)
    gate, error = evenly((6, 2), 1) + 2, 0.05 + 0.05 * evenly((6, 2), 2).abs()
    exact = gated(attention, gate, torch.zeros_like(gate))
    stated = gated(attention, gate, error)
    runs = [gated(attention, gate + error / EVEN * evenly((6, 2), seed), 0 * error).value for seed in range(300)]
    spread = (torch.stack(runs) - exact.value).square().mean(dim=0).sqrt()
    assert torch.allclose(spread, stated.independent, rtol=0.25, atol=1e-4)
    assert float(exact.independent.max()) < 1e-4


def test_gates_scale_errors_as_they_scale_values():
    _, attention = attention_of(torch.bfloat16)
    ones = torch.ones(6, 2, dtype=torch.float64)
    one, two = (gated(attention, factor * ones, 0 * ones) for factor in (1.0, 2.0))
    assert torch.allclose(2 * one.value, two.value)
    assert torch.allclose(2 * one.independent, two.independent, rtol=1e-6)


def test_what_gates_multiplied_is_rounded_once_more():
    """One visible key: its weight, the output, and the gated output, then the product."""
    inputs, attention = attention_of(torch.bfloat16)
    vars(attention)["_query"], attention.keys, attention.values = (
        Spread.exact(part.value) for part in (attention._query, attention.keys, attention.values)
    )
    ones = torch.ones(6, 2, dtype=torch.float64)
    vars(attention)["_gate"] = Inexact(ones, 0 * ones)
    result = attention.rows(ROWS, ROWS, visible(6, 6, 1))
    output = attention.values.value.repeat_interleave(2, dim=1)
    matrix = inputs.attention.output.double()
    rounding = rounding_scale(torch.bfloat16)
    single = product(output.flatten(1), matrix, torch.bfloat16).independent * EVEN
    by_head = (output.transpose(0, 1) @ matrix.view(2, 64, -1)).square().sum(dim=0)  # a weight is for all of a head
    elements = (output.flatten(1).square()) @ matrix.square()
    assert torch.allclose(
        result.independent.square(), rounding**2 * (by_head + 2 * elements) + single.square(), rtol=0.02
    )


def test_latents_may_be_absorbed_or_expanded():
    _, attention = attention_of(torch.bfloat16, replace(CASE, kind="deepseek"), LatentAttention)
    seen = visible(6, 6, None)
    result = attention.rows(ROWS, ROWS, seen)
    expanded, absorbed = attention._expanded(ROWS, ROWS, seen), attention._absorbed(ROWS, ROWS, seen)
    assert torch.allclose(expanded.value, absorbed.value, rtol=1e-9, atol=1e-12)
    assert torch.equal(result.independent, torch.maximum(expanded.independent, absorbed.independent))
    ratio = expanded.independent / absorbed.independent
    assert 0.5 < float(ratio.min()) < 1
    assert float(ratio.max()) < 2


@pytest.mark.parametrize("which", ["weights", "states"])
def test_each_source_makes_hidden_states_less_certain(which, monkeypatch):
    inputs = build_inputs(CASE)
    before = decoder_layer(inputs)["hidden"].bound
    if which == "weights":
        original = layer.chosen_experts

        def chosen(*given):
            choice = original(*given)
            return replace(choice, weights=Inexact(choice.weights.value, choice.weights.error * 10))

        monkeypatch.setattr(layer, "chosen_experts", chosen)
    else:
        said = layer.said_by_experts
        monkeypatch.setattr(
            layer,
            "said_by_experts",
            lambda states, *more: said(Spread.of(states.value, 10 * states.independent), *more),
        )
    after = decoder_layer(inputs)["hidden"].bound
    finite = before.isfinite()
    assert float((after / before)[finite].median()) > 1.2


@pytest.mark.parametrize(("form", "count"), [("float", 0), ("w8a8", 2), ("w4a8", 2)])
def test_rows_are_rounded_to_steps_before_either_product(form, count, monkeypatch):
    calls = []
    original = experts._in_steps
    monkeypatch.setattr(experts, "_in_steps", lambda rows: calls.append(rows) or original(rows))
    inputs = build_inputs(replace(CASE, form=form))
    states = Spread.exact(inputs.hidden)
    said_by_experts(states, torch.zeros(6, 1, dtype=torch.int64), inputs.experts.routed, torch.bfloat16)
    assert len(calls) == count
    rows = Inexact.exact(inputs.hidden)
    half = rows.value.abs().amax(dim=1, keepdim=True) / 254 + rows.value.abs() * 2.0**-10
    assert torch.allclose(original(rows).error, half * EVEN, rtol=1e-6)


def test_gates_and_ups_are_rounded_before_they_are_multiplied():
    inputs = build_inputs(CASE)
    routed, topk_ids = inputs.experts.routed, torch.zeros(6, 1, dtype=torch.int64)
    said = said_by_experts(Spread.exact(inputs.hidden), topk_ids, routed, torch.bfloat16)
    first = inputs.hidden.double() @ routed.up.values[0].double()
    exact = experts._activated(Inexact.exact(first), routed.gate, torch.bfloat16)
    without = experts._times(exact, routed.down, topk_ids[:, 0], torch.bfloat16).brought
    assert float((said.brought[:, 0] / without).median()) > 1.2


def test_what_is_brought_up_from_latents_is_rounded():
    _, attention = attention_of(torch.bfloat16, replace(CASE, kind="deepseek"), LatentAttention)
    seen = visible(6, 6, None)
    result = projected_attention(attention._latent_queries, attention._latent_keys, attention.keys, seen,
                                 attention._inputs.scale, attention._through, torch.bfloat16)  # fmt: skip
    values = result.output @ attention._v_up
    rounded = (rounding_scale(torch.bfloat16) * values).square() @ attention._matrix.square()
    last = product(values.transpose(0, 1).flatten(1), attention._output, torch.bfloat16).independent * EVEN
    whole = (result.scale.square() + rounded).sum(dim=0) + last.square()
    assert torch.allclose(attention._absorbed(ROWS, ROWS, seen).independent.square(), whole, rtol=0.01)
    assert float((rounded.sum(dim=0) / whole).median()) > 0.03
