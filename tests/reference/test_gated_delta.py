"""The reference of the gated delta rule, against transformers, by hand, and against what rounds otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from npudiff.device.ascend.gated_delta import decayed_products, kimi_chunks
from npudiff.draw.data import Stream
from npudiff.properties.gated_delta import GatedDeltaCase, Run, build_inputs
from npudiff.reference.gated_delta import gated_delta
from npudiff.reference.gated_delta_chunk import DeltaChunk
from npudiff.reference.gated_delta_tokens import DeltaState

PLAIN = GatedDeltaCase((Run(150),), key_heads=2, group=2, key_dim=48, value_dim=40, seed=11)

KIMI = replace(PLAIN, gates="channel", chunked=True)


def by_transformers(inputs, rule):
    """Outputs and states of a rule in float32; it has states [key_dim, value_dim] and one request per batch."""
    outputs, states, start = [], inputs.states.float().clone(), 0
    for length, first in zip(inputs.lengths, inputs.initial.tolist(), strict=True):
        rows = slice(start, start + length)
        share = inputs.value.shape[1] // inputs.key.shape[1]
        query, key = (one[rows].repeat_interleave(share, 1)[None].float() for one in (inputs.query, inputs.key))
        state = states[first].mT[None] if first >= 0 else torch.zeros_like(states[:1]).mT
        gate = torch.zeros_like(inputs.beta[rows]).float() if inputs.gate is None else inputs.gate[rows]
        beta = inputs.beta[rows].float()
        output, last = rule(
            query, key, inputs.value[rows][None].float(), gate[None], (beta.sigmoid() if inputs.raw else beta)[None],
            initial_state=state.contiguous(), output_final_state=True, use_qk_l2norm_in_kernel=inputs.raw,
        )  # fmt: skip
        outputs.append(output[0])
        states[int(inputs.slots[start + length - 1])] = last[0].mT
        start += length
    return torch.cat(outputs), states


@pytest.mark.parametrize("rule", [torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule])
@pytest.mark.parametrize(
    "case",
    [
        PLAIN,
        replace(PLAIN, requests=(Run(1), Run(64), Run(65, fresh=True))),
        replace(PLAIN, gates="none", betas="one", keys="alike"),
        replace(PLAIN, raw=True),
        replace(PLAIN, decays="weak", keys="turning"),
        replace(PLAIN, decays="strong", keys="orthogonal"),
    ],
)
def test_transformers_agrees(case, rule):
    inputs = build_inputs(replace(case, state_dtype="float32"))
    expected = gated_delta(inputs)
    outputs, states = by_transformers(inputs, rule)
    error = (outputs.double() - expected["output"].value).abs()
    assert bool((error <= expected["output"].bound).all())
    assert float(error.max()) < 1e-5 * float(expected["output"].value.abs().max()) + 1e-6
    assert torch.allclose(states.double(), expected["states"].value, rtol=1e-5, atol=3e-5)


def recurrence(inputs):
    """Outputs and the last states, float64, straight from the definition."""
    share = inputs.value.shape[1] // inputs.key.shape[1]
    wide = [one.double() for one in (inputs.query * 1.0, inputs.key * 1.0)]
    query, key = (one.repeat_interleave(share, 1) for one in wide)
    outputs, states, start = torch.zeros(inputs.value.shape, dtype=torch.float64), inputs.states.double(), 0
    for length, first in zip(inputs.lengths, inputs.initial.tolist(), strict=True):
        state = states[first] if first >= 0 else torch.zeros_like(states[0])
        for token in range(start, start + length):
            decay = torch.ones_like(state)
            if inputs.gate is not None:
                decay = decay * inputs.gate[token].double().exp()[:, None, None]
            if inputs.channel_gate is not None:
                decay = decay * inputs.channel_gate[token].double().exp()[:, None, :]
            state = state * decay
            for head in range(len(state)):
                missing = inputs.value[token, head].double() - state[head] @ key[token, head]
                state[head] += torch.outer(missing * inputs.beta[token, head].double(), key[token, head])
                outputs[token, head] = state[head] @ query[token, head] * inputs.scale
            if int(inputs.slots[token]) >= 0:
                states[int(inputs.slots[token])] = state
        start += length
    return outputs, states


@pytest.mark.few(21)
@pytest.mark.parametrize("gates", ["head", "channel", "both", "none"])
@pytest.mark.parametrize("decays", ["usual", "weak", "strong", "some"])
@pytest.mark.parametrize("keys", ["gaussian", "alike", "turning", "orthogonal"])
def test_it_is_the_recurrence(gates, decays, keys):
    inputs = build_inputs(replace(PLAIN, requests=(Run(70), Run(3)), gates=gates, decays=decays, keys=keys))
    outputs, states = recurrence(inputs)
    expected = gated_delta(inputs)
    assert float((outputs - expected["output"].value).abs().max()) < 1e-12
    assert float((states - expected["states"].value).abs().max()) < 1e-11


@pytest.mark.few(5)
@pytest.mark.parametrize("decays", ["usual", "weak", "strong", "some"])
@pytest.mark.parametrize("keys", ["gaussian", "alike", "turning", "orthogonal"])
def test_chunks_of_64_with_decays_of_channels_are_the_recurrence_however_fast_they_decay(decays, keys):
    requests = (Run(150), Run(64, fresh=True), Run(3))
    inputs = build_inputs(replace(KIMI, requests=requests, decays=decays, keys=keys))
    outputs, states = recurrence(inputs)
    expected = gated_delta(inputs)
    assert float((outputs - expected["output"].value).abs().max()) < 1e-12
    written = inputs.slots[inputs.slots >= 0].long()
    assert float((states - expected["states"].value)[written].abs().max()) < 1e-11
    assert all(bool(one.bound.isfinite().all()) for one in expected.values())


def rounded_errors(case, products=decayed_products):
    """Errors over bounds of a device that rounds wherever one may: of outputs and of states."""
    inputs = build_inputs(case)
    expected = gated_delta(inputs)
    actual = kimi_chunks(inputs.to("cpu"), products)
    for name, right in expected.items():
        written = (right.bound > 0) & right.bound.isfinite()
        error = (actual[name].double() - right.value).abs()
        assert not bool(error[right.bound == 0].any())
        yield (error / right.bound)[written]


@pytest.mark.few(13)
@pytest.mark.parametrize("decays", ["usual", "weak", "strong", "some"])
@pytest.mark.parametrize("keys", ["gaussian", "alike", "turning", "orthogonal", "tiny"])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "float32"])
def test_a_device_that_rounds_all_it_may_in_chunks_of_channels_is_within_its_bound(decays, keys, state_dtype):
    """The worst of tens of thousands of errors is a good part of six scales, and the scale is one of them."""
    requests = (Run(200), Run(64, fresh=True), Run(17), Run(1))
    case = replace(KIMI, requests=requests, decays=decays, keys=keys, state_dtype=state_dtype)
    for ratios in rounded_errors(case):
        assert float(ratios.max()) < 0.8
        if decays != "some" and keys != "orthogonal":
            assert float(ratios.max()) > 0.2
            assert 6 * float(ratios.square().mean().sqrt()) > 0.2


@pytest.mark.parametrize("keys", ["gaussian", "alike"])
def test_factors_may_be_narrow_from_the_start_of_a_chunk_where_float32_holds_them(keys):
    def products(rows, tokens):
        later, earlier = rows * tokens.total.exp(), tokens.key * (-tokens.total).exp()
        return later.bfloat16().float() @ earlier.bfloat16().float().mT

    case = replace(KIMI, requests=(Run(200), Run(64)), keys=keys, decays="weak")
    for ratios in rounded_errors(case, products):
        assert 0.2 < float(ratios.max()) < 0.8


def test_what_is_left_of_terms_that_cancel_is_off_by_roundings_of_the_terms(monkeypatch):
    """Queries read next to nothing of keys that are all alike, but by the errors of what they are multiplied with."""
    case = replace(KIMI, requests=(Run(64, fresh=True),), decays="weak", group=1, key_heads=1)
    inputs = build_inputs(case)
    gate = inputs.channel_gate[:, :, ::2].repeat_interleave(2, dim=-1)
    key = inputs.key[:1].expand_as(inputs.key)
    query = inputs.query[:1].clone()
    query[..., 1::2] = -query[..., ::2] * key[:1, :, ::2] / key[:1, :, 1::2]
    given = replace(inputs, channel_gate=gate, key=key.contiguous(), query=query.expand_as(key).contiguous())
    actual = kimi_chunks(given.to("cpu"))["output"].double()
    expected = gated_delta(given)["output"]
    ratios = ((actual - expected.value).abs() / expected.bound)[32:]
    assert 0.1 < float(ratios.max()) < 0.9
    monkeypatch.setattr("npudiff.reference.gated_delta_errors.FACTOR_ROUNDINGS", 0)
    assert float(gated_delta(given)["output"].bound[32:].median()) < 0.5 * float(expected.bound[32:].median())


def test_columns_that_are_gone_at_the_end_of_a_chunk_have_no_errors_left_in_the_next():
    case = replace(KIMI, requests=(Run(65),), state_dtype="float32", group=1, key_heads=1)
    inputs = build_inputs(case)
    gate, beta, key = torch.zeros_like(inputs.channel_gate), inputs.beta.clone(), inputs.key.clone()
    gate[63, :, ::2], beta[63:], key[63:] = -40.0, 0.0, 0.0
    changed = replace(inputs, channel_gate=gate, beta=beta, key=key)
    bound = gated_delta(changed)["states"].bound[int(inputs.slots[64])]
    assert float(bound[..., ::2].max()) < 0.1 * float(bound[..., 1::2].min())


def test_a_device_in_chunks_has_roundings_between_64_tokens_whatever_the_reference_computes_at_once(monkeypatch):
    inputs = build_inputs(replace(KIMI, requests=(Run(70),)))
    bound = gated_delta(inputs)["states"].bound
    monkeypatch.setattr("npudiff.reference.gated_delta.CHUNK_OF_CHANNELS", 8)
    assert torch.equal(gated_delta(inputs)["states"].bound, bound)
    monkeypatch.setattr("npudiff.reference.gated_delta.CHUNK", 32)
    assert not torch.allclose(gated_delta(inputs)["states"].bound, bound, rtol=1e-3)


def test_factors_of_pairs_are_squares_of_terms_that_channels_have():
    tokens, dim = 9, 12
    state = DeltaState.exact(torch.zeros(2, 5, dim, dtype=torch.float64))
    chunk, _ = drawn_chunk(state, tokens, dim, 1.0)
    scores, alike = chunk.pair_squares
    for later in range(tokens):
        for earlier in range(tokens):
            if earlier > later:
                assert not bool(scores[:, later, earlier].any())
                continue
            decay = (chunk.gates[:, later] - chunk.gates[:, earlier]).exp()
            terms = chunk.query[:, later] * decay * chunk.key[:, earlier]
            torch.testing.assert_close(scores[:, later, earlier], terms.square().sum(-1))
            terms = chunk.beta[:, later] * chunk.key[:, later] * decay * chunk.key[:, earlier] * (earlier < later)
            torch.testing.assert_close(alike[:, later, earlier], terms.square().sum(-1))
    plain, _ = drawn_chunk(state, tokens, 1, 1.0)
    assert plain.pair_squares is None


def test_a_first_state_of_float32_may_be_rounded_where_it_is_read_and_one_of_bfloat16_is_narrow():
    """One that is a little off any number of bfloat16 has a rounding more."""
    case = replace(KIMI, requests=(Run(1),), state_dtype="float32", decays="weak")
    inputs = build_inputs(case)
    narrow = replace(inputs, states=inputs.states.bfloat16().float())
    wide = replace(inputs, states=narrow.states * (1 + 2.0**-12))
    few, more = (gated_delta(one)["output"].bound for one in (narrow, wide))
    assert float((more / few).median()) > 1.05
    assert float((more / few).max()) < 1.5


@pytest.mark.parametrize("gates", ["head", "both"])
def test_every_state_of_a_draft_is_kept_and_a_request_begins_with_one_that_was_accepted(gates):
    inputs = build_inputs(replace(PLAIN, requests=(Run(5), Run(0), Run(2)), kept="each", accepted="any", gates=gates))
    outputs, states = recurrence(inputs)
    expected = gated_delta(inputs)
    assert float((outputs - expected["output"].value).abs().max()) < 1e-12
    assert float((states - expected["states"].value).abs().max()) < 1e-12


def test_orthogonal_keys_are_read_back():
    """Without decay, and with beta 1, the state holds what was written along orthogonal keys: S k is v."""
    case = GatedDeltaCase((Run(16),), key_dim=16, value_dim=8, gates="none", keys="orthogonal", betas="one", seed=3)
    inputs = replace(build_inputs(case), scale=1.0)
    inputs = replace(inputs, query=inputs.key)
    expected = gated_delta(inputs)["output"].value
    assert torch.equal(expected, inputs.value.double())


def test_what_is_not_written_stays_bit_for_bit_and_padding_is_not_specified():
    inputs = build_inputs(replace(PLAIN, requests=(Run(3),), padded_rows=2, spare_slots=2))
    expected = gated_delta(inputs)
    written = int(inputs.slots[2])
    others = [slot for slot in range(len(inputs.states)) if slot != written]
    assert torch.equal(expected["states"].value[others], inputs.states[others].double())
    assert not bool(expected["states"].bound[others].any())
    assert bool(expected["output"].bound[3:].isposinf().all())
    assert bool(expected["output"].bound[:3].isfinite().all())
    by_token = ("query", "key", "value", "beta", "slots", "gate")
    alone = replace(inputs, **{name: getattr(inputs, name)[:3] for name in by_token})
    assert torch.equal(gated_delta(alone)["output"].value, expected["output"].value[:3])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("decays", "gates"),
    [("usual", "head"), ("weak", "head"), ("usual", "none"), ("usual", "channel"), ("weak", "channel")],
)
def test_bounds_do_not_explode_and_stay_sharp(decays, gates, chunked):
    """From 4 chunks to 32 they grow by at most eight, as what nothing forgets does, and stay parts of a value."""
    case = replace(PLAIN, requests=(Run(2048),), key_dim=32, value_dim=32, group=1, key_heads=1,
                   gates=gates, decays=decays, chunked=chunked)  # fmt: skip
    inputs = build_inputs(case)
    expected = gated_delta(inputs)["output"]
    blocks = expected.bound.reshape(32, 64, -1).median(dim=1).values.median(dim=1).values
    assert float(blocks[-1]) < 8 * float(blocks[3])
    sizes = expected.value.square().mean().sqrt()
    assert float(blocks[-1] / sizes) < (0.5 if chunked else 0.02)


@pytest.mark.parametrize("gates", ["head", "channel", "none"])
@pytest.mark.parametrize("chunked", [False, True])
def test_parts_are_what_they_are_by_themselves(monkeypatch, gates, chunked):
    """Sequences of one length, heads and states are computed together: none of them sees another."""
    requests = (Run(65), Run(3), Run(65, fresh=True), Run(3), Run(65), Run(1))
    inputs = build_inputs(replace(PLAIN, requests=requests, gates=gates, chunked=chunked, key_dim=24, value_dim=16))
    drafts = replace(PLAIN, requests=(Run(4), Run(4)), kept="each", gates=gates, key_dim=24, value_dim=16)
    for given in [inputs] if chunked else [inputs, build_inputs(drafts)]:
        together = gated_delta(given)
        monkeypatch.setattr("npudiff.reference.gated_delta.STATES_TOGETHER", 1)
        alone = gated_delta(given)
        monkeypatch.undo()
        for name, one in alone.items():
            torch.testing.assert_close(together[name].value, one.value, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(together[name].bound, one.bound, rtol=1e-9, atol=0)


def drawn_chunk(state, tokens, channels, decay):
    """A chunk whose numbers are drawn, with a decay of one token of about ``exp(-decay)``; and what turns a state."""
    stream = Stream(8, "numbers")
    heads, _, dim = state.shape.shape

    def normal(*shape):
        return stream.normal(shape, torch.float32).double()

    key = torch.nn.functional.normalize(normal(heads, tokens, dim), dim=-1)
    gate = -2 * decay * torch.sigmoid(normal(heads, tokens, channels))
    beta = torch.sigmoid(normal(heads, tokens))
    query, value = normal(heads, tokens, dim), normal(heads, tokens, state.value.shape[1])
    turn = torch.eye(dim, dtype=torch.float64).expand(heads, -1, -1)
    for token in range(tokens):
        one = key[:, token]
        forgets = torch.eye(dim, dtype=torch.float64) - beta[:, token, None, None] * one.unsqueeze(2) * one.unsqueeze(1)
        turn = turn @ (torch.diag_embed(gate[:, token].exp().expand(-1, dim)) @ forgets)
    return DeltaChunk(state, query, key, value, beta, gate, narrow=None), turn


@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize("decay", [0.0, 0.1, 20.0])
def test_the_shape_behind_a_chunk_is_that_before_it_turned_token_by_token(channels, decay):
    stream, heads, dim = Stream(9, "numbers"), 2, 12
    root = stream.normal((heads, dim, dim), torch.float32).double()
    spread = torch.full((heads, 5), 1e3, dtype=torch.float64)  # so that what tokens add is nothing beside it
    shape = root @ root.mT
    state = DeltaState(torch.zeros(heads, 5, dim, dtype=torch.float64), spread, shape, torch.zeros_like(spread))
    chunk, turn = drawn_chunk(state, 7, channels, decay)
    right = turn.mT @ shape @ turn
    left = right.diagonal(dim1=1, dim2=2).mean(dim=-1).clamp(max=1.0)[:, None, None]
    after = chunk.after()
    torch.testing.assert_close(after.shape, right / left + torch.eye(dim, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    if decay < 1:
        torch.testing.assert_close(after.spread, spread * left[..., 0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("most", [1.0, 1 - 1e-7])
def test_next_to_nothing_is_left_of_what_is_overwritten(most):
    """Orthogonal keys overwrite a whole state, but for what beta leaves: 1e-14 of its covariance, or nothing."""
    stream, heads, dim = Stream(10, "numbers"), 3, 8
    basis, _ = torch.linalg.qr(stream.normal((heads, dim, dim), torch.float32).double())
    root = stream.normal((heads, dim, dim), torch.float32).double()
    zeros = torch.zeros(heads, 4, dim, dtype=torch.float64)
    spread = torch.full((heads, 4), 1e12, dtype=torch.float64)
    state = DeltaState(zeros, spread, root @ root.mT, torch.zeros_like(spread))
    beta = torch.full((heads, dim), most, dtype=torch.float64)
    value = torch.zeros(heads, dim, 4, dtype=torch.float64)
    gate = torch.zeros(heads, dim, 1, dtype=torch.float64)
    after = DeltaChunk(state, basis, basis, value, beta, gate, narrow=None).after()
    left = (1 - most) ** 2 * (root @ root.mT).diagonal(dim1=1, dim2=2).mean(dim=-1)
    assert float((after.spread / 1e12 - left[:, None]).abs().max()) < 1e-17


def rough_and_exact(monkeypatch, inputs):
    """What float32 and float64 say of bounds."""
    monkeypatch.setattr("npudiff.reference.gated_delta_chunk.ROUGH_FROM", 0)
    rough = gated_delta(inputs)
    monkeypatch.setattr("npudiff.reference.gated_delta_chunk.ROUGH_FROM", 2**62)
    return rough, gated_delta(inputs)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"decays": "strong"}, {"decays": "some"}, {"keys": "orthogonal", "betas": "one"}, {"keys": "tiny"},
     {"gates": "none", "keys": "alike"}, {"betas": "zero", "decays": "strong"}, {"raw": True, "keys": "tiny"}],
)  # fmt: skip
def test_bounds_in_float32_are_those_in_float64(monkeypatch, changes, chunked):
    case = replace(PLAIN, requests=(Run(200), Run(70, fresh=True)), chunked=chunked, **changes)
    rough, exact = rough_and_exact(monkeypatch, build_inputs(case))
    for name, right in exact.items():
        torch.testing.assert_close(rough[name].bound, right.bound, rtol=1e-4, atol=0)


@pytest.mark.parametrize("factor", [2.0**-70, 2.0**60])
def test_what_float32_does_not_hold_is_computed_in_float64(monkeypatch, factor):
    inputs = build_inputs(replace(PLAIN, chunked=True))
    scaled = replace(inputs, value=inputs.value * factor, states=inputs.states * factor)
    rough, exact = rough_and_exact(monkeypatch, scaled)
    for name, right in exact.items():
        torch.testing.assert_close(rough[name].bound, right.bound, rtol=1e-12, atol=0)


def test_errors_of_a_state_are_within_what_is_handed_on():
    """A state that is off at random, by the scale that is said of it, gives outputs within the next chunk's bound."""
    stream = Stream(5, "numbers")
    heads, tokens, dim = 2, 40, 24

    def normal(*shape):
        return stream.normal(shape, torch.float32).double()

    key = torch.nn.functional.normalize(normal(heads, tokens, dim), dim=-1)
    given = (normal(heads, tokens, dim), key, normal(heads, tokens, dim), torch.sigmoid(normal(heads, tokens)),
             -torch.sigmoid(normal(heads, tokens, 1)))  # fmt: skip
    value = normal(heads, dim, dim)
    spread = torch.full((heads, dim), 1e-4, dtype=torch.float64)
    shape = torch.eye(dim, dtype=torch.float64).expand(heads, -1, -1)
    state = DeltaState(value, spread, shape, torch.zeros_like(spread))
    expected = DeltaChunk(state, *given, narrow=None).outputs()
    worst = 0.0
    for _ in range(30):
        off = DeltaState(value + 1e-2 * normal(heads, dim, dim), spread, shape, torch.zeros_like(spread))
        error = DeltaChunk(off, *given, narrow=None).outputs().value - expected.value
        worst = max(worst, float((error.abs() / expected.bound).max()))
    assert 0.3 < worst < 1  # six times the scale; the largest of 57,600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 1.0, "beta": torch.ones(2, 2)}, "beta must be"),
        ({"lengths": (200,)}, "are not of 150 tokens"),
        ({"initial": torch.tensor([9], dtype=torch.int32)}, "beyond the pool"),
        ({"slots": torch.zeros(150, dtype=torch.int32)}, "two tokens write one slot"),
        ({"lengths": (3,)}, "a row of padding has a slot"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gated_delta(replace(build_inputs(PLAIN), **changes))
