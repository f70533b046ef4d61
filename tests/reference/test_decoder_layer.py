from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.properties.decoder_layer import DecoderLayerCase, LayerRequest
from npudiff.properties.decoder_layer.inputs import build_inputs
from npudiff.properties.decoder_layer.relations import regrouped
from npudiff.reference.decoder_layer import LayerStep, decoder_layer
from npudiff.reference.decoder_layer.experts import said_by_experts
from npudiff.reference.inexact import Inexact
from npudiff.reference.mla_preprocess import MlaPreprocessInputs, mla_preprocess
from npudiff.reference.moe_experts import of_experts
from npudiff.reference.paged_cache import PagedCacheInputs, paged_cache
from npudiff.reference.spread import CONFIDENCE, Spread, rounding_scale

STEP = DecoderLayerCase((LayerRequest(0, 5), LayerRequest(3, 7)), decode_steps=2, window=4, group=2, top_k=2, seed=5)
LATENT = DecoderLayerCase(STEP.requests, kind="deepseek", decode_steps=2, group=2, top_k=2, seed=5)
KINDS = pytest.mark.parametrize("case", [STEP, LATENT], ids=["step-3.5", "deepseek"])


@KINDS
def test_where_requests_are_cut_into_steps_does_not_matter(case):
    inputs = build_inputs(case)
    whole, order = regrouped(inputs, [LayerStep((1, 0), case.lengths[::-1], case.lengths[::-1])])
    one, other = decoder_layer(inputs), decoder_layer(whole)
    for name, output in one.items():
        assert torch.allclose(output.value[order], other[name].value, rtol=1e-12, atol=1e-12), name
        assert torch.allclose(output.bound[order], other[name].bound, rtol=1e-3), name  # longer sums of float32


@KINDS
def test_flags_and_what_the_pool_held_before_are_nothing_to_it(case):
    inputs = build_inputs(case)
    other = replace(inputs, key_cache=-inputs.key_cache, use_fia=False, fia_nz=True, mlapo=True, native_norm=True)
    for name, output in decoder_layer(inputs).items():
        assert torch.equal(output.value, decoder_layer(other)[name].value)


@KINDS
def test_bounds_are_small_where_they_say_anything_and_most_tokens_are_sure(case):
    sure = []
    for seed in range(12):
        for name, output in decoder_layer(build_inputs(replace(case, seed=seed))).items():
            finite = output.bound.isfinite()
            typical = float(output.value.square().mean().sqrt())
            limit = {"keys": 0.05, "values": 0.05, "residual": 0.07, "hidden": 0.3}[name]
            assert float(output.bound[finite].mean()) < limit * typical, name
            assert name == "hidden" or bool(finite.all())
            sure.append(float(finite.double().mean())) if name == "hidden" else None
    assert sum(sure) / len(sure) > 0.8


def test_a_token_whose_experts_are_not_sure_has_no_hidden_state_and_all_the_rest():
    inputs = build_inputs(STEP)
    alike = torch.zeros_like(inputs.experts.router)
    mixture = replace(inputs.experts, router=alike, bias=torch.zeros_like(inputs.experts.bias))
    expected = decoder_layer(replace(inputs, experts=mixture))
    assert bool(expected["hidden"].bound.isinf().all())
    assert all(bool(expected[name].bound.isfinite().all()) for name in ("keys", "values", "residual"))


def test_a_window_of_one_sees_itself_and_no_window_sees_all():
    def residual(window, requests=((0, 6),)):
        case = replace(STEP, window=window, decode_steps=0, requests=tuple(LayerRequest(*one) for one in requests))
        return decoder_layer(build_inputs(case))["residual"].value

    assert torch.equal(residual(6), residual(None))
    assert not torch.equal(residual(5)[5], residual(None)[5])
    assert torch.equal(residual(5)[:5], residual(None)[:5])
    assert torch.equal(residual(1)[0], residual(None)[0])


def test_what_is_cached_is_that_of_mla_preprocess():
    inputs = build_inputs(LATENT)
    own = inputs.attention
    expected = decoder_layer(inputs)
    total = inputs.hidden.double() + inputs.residual.double()
    weight = inputs.input_norm.double()
    states = total * torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + inputs.epsilon) * weight
    given = MlaPreprocessInputs(
        states, own.q_a, own.q_a_norm, own.q_b, own.k_up, own.kv_a, own.kv_a_norm, inputs.epsilon, inputs.positions,
        inputs.cos_sin_cache, inputs.key_cache.double(), inputs.value_cache.double(), inputs.slots, inputs.page_size,
        "PA_BSND",
    )  # fmt: skip
    outputs = mla_preprocess(given)
    for name, cache in (("keys", "latent_cache"), ("values", "rope_cache")):
        rows = outputs[cache].value.flatten(0, 1)[inputs.slots]
        assert torch.allclose(rows, expected[name].value, rtol=1e-9, atol=1e-12)


def test_slots_are_those_that_the_cache_is_written_at():
    inputs = build_inputs(STEP)
    expected = decoder_layer(inputs)
    rows = expected["keys"].value.bfloat16()
    written = paged_cache(
        PagedCacheInputs(rows, rows, inputs.key_cache, inputs.value_cache, inputs.sliding_slots, 16, "PA_BSND")
    )["key_cache"].value
    for request, length in enumerate(STEP.lengths):
        tokens = torch.arange(length)
        page = inputs.sliding_block_table[request, tokens // 16].long()
        src_to_dst_row = [
            index for index, slot in enumerate(inputs.sliding_slots.tolist()) if slot in (page * 16 + tokens % 16)
        ]
        assert torch.equal(written[page, tokens % 16], rows[src_to_dst_row])


@pytest.mark.parametrize("form", ["float", "w8a8", "w4a8"])
@pytest.mark.parametrize("limit", [None, 1.5])
def test_experts_are_those_of_moe_experts(form, limit):
    case = replace(STEP, form=form, limit=limit, width=32)
    inputs = build_inputs(case)
    states, experts = inputs.hidden * 2, inputs.experts.routed
    top_k = torch.arange(len(states) * 2).view(-1, 2) % 4
    ours = said_by_experts(Spread.exact(states), top_k, experts, torch.bfloat16).inexact
    theirs = of_experts(Inexact.exact(states), top_k, torch.arange(4), experts, torch.bfloat16).inexact
    assert bool(((ours.value - theirs.value).abs() <= ours.error + theirs.error).all())
    assert torch.equal(ours.value, theirs.value) == (form == "float")
    assert float(ours.error.mean()) < 2 * float(theirs.error.mean())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": torch.zeros(3, 64)}, "the steps have 19 tokens, hidden 3 rows"),
        ({"residual": torch.zeros(19, 32)}, "the steps have 19 tokens, hidden 19 rows"),
        ({"positions": torch.zeros(19, dtype=torch.int64)}, r"positions of request 1 must be 0 to 2"),
        ({"sliding_slots": torch.arange(19)}, "slots of request 1 are not those of its pages"),
        ({"window": 0}, r"window must be at least 1 \(the query's own key\) or None, got 0"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        decoder_layer(replace(build_inputs(STEP), **changed))


def test_steps_that_do_not_follow_each_other_are_refused():
    inputs = build_inputs(STEP)
    first, *rest = inputs.steps
    with pytest.raises(ValueError, match="request 1 has 0 tokens, and 3 more are not 4"):
        decoder_layer(replace(inputs, steps=(replace(first, kv_lengths=(4,)), *rest)))


def test_a_step_has_a_token_of_every_request_in_it():
    inputs = build_inputs(STEP)
    first, *rest = inputs.steps
    empty = replace(first, requests=(0, 1), query_lengths=(0, 3), kv_lengths=(0, 3))
    with pytest.raises(ValueError, match="request 0 has 0 tokens, and 0 more are not 0"):
        decoder_layer(replace(inputs, steps=(empty, *rest)))


@KINDS
def test_the_residual_is_rounded_before_attention_and_after_it(case):
    inputs = build_inputs(case)
    silent = replace(inputs.attention, output=torch.zeros_like(inputs.attention.output))
    residual = decoder_layer(replace(inputs, attention=silent))["residual"]
    assert torch.equal(residual.value, inputs.hidden.double() + inputs.residual.double())
    roundings = 2**0.5 * CONFIDENCE * rounding_scale(torch.bfloat16)
    assert torch.allclose(residual.bound, roundings * residual.value.abs(), rtol=1e-6, atol=1e-30)
