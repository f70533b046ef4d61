"""``chunk_gated_delta_rule`` of sgl-kernel-npu beside torch_npu's, and the states of its chunks against the rule."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

TOKENS, KEYS, HEADS, DK, DV = 200, 1, 2, 32, 24
LENGTHS = [130, 0, 64, 6]
CHUNKS = 5


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def call(rule):
    return {
        "query": rule.unit(rule.draw(TOKENS, KEYS, DK)),
        "key": rule.unit(rule.draw(TOKENS, KEYS, DK, seed=1)),
        "value": rule.draw(TOKENS, HEADS, DV, seed=2),
        "beta": rule.uniform(TOKENS, HEADS, seed=4).bfloat16(),
        "initial_state": rule.draw(len(LENGTHS), HEADS, DV, DK, seed=3),
        "actual_seq_lengths": int32(*LENGTHS),
        "scale": DK**-0.5,
        "g": -rule.uniform(TOKENS, HEADS, seed=5),
        "chunk_state": torch.zeros(CHUNKS + 1, HEADS, DV, DK).bfloat16(),
    }


def run(call):
    return torch.ops.npu.chunk_gated_delta_rule(**call)


def test_outputs_and_states_are_those_of_torch_npu(call):
    out, state = run(call)
    theirs = {name: value for name, value in call.items() if name != "chunk_state"}
    expected, last = torch.ops.npu.npu_chunk_gated_delta_rule(**theirs)
    assert torch.equal(out, expected)
    assert torch.equal(state[[0, 2, 3]], last[[0, 2, 3]])
    assert torch.equal(state[1], unwritten((HEADS, DV, DK), torch.bfloat16))  # no tokens
    again, _ = run(call | {"chunk_state": None})
    assert torch.equal(again, out)


def test_chunk_states_are_those_with_which_chunks_begin(call, rule):
    """Which in sglang's prefix cache are the states behind 0, 64 and 128 tokens of each sequence."""
    with use_profile(dataclasses.replace(PROFILES["8.5"], name="exact", chunk_rounding="float32")):
        run(call)
    chunk, start = 0, 0
    for i, length in enumerate(LENGTHS):
        rows = slice(start, start + length)
        given = [call[name][rows] for name in ("query", "key", "value", "beta")]
        golden = rule.exact(call["initial_state"][i], *given, call["scale"], call["g"][rows])
        for behind in range(0, length, 64):
            exact = golden.states[behind - 1] if behind else call["initial_state"][i].double()
            error = (call["chunk_state"][chunk].double() - exact).abs()
            assert (error <= 2.0**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()
            chunk += 1
        start += length
    assert chunk == CHUNKS
    assert not call["chunk_state"][CHUNKS].any()


def test_two_tokens_round_where_the_kernel_stores(rule):
    """Heads of one key and one value, so that each number has at most two terms, in any order."""
    heads, scale = 64, 0.5
    tensors = {name: rule.draw(2, heads, 1, seed=i) for i, name in enumerate(("query", "key", "value"))}
    tensors["beta"] = rule.uniform(2, heads, seed=3).bfloat16()
    state, g = rule.draw(1, heads, 1, 1, seed=4), -rule.uniform(2, heads, seed=5)
    out, final = torch.ops.npu.chunk_gated_delta_rule(
        **tensors, initial_state=state, actual_seq_lengths=int32(2), scale=scale, g=g
    )

    def b(x):
        return x.bfloat16().float()

    q, k, v = (tensors[name].float().squeeze(-1) for name in ("query", "key", "value"))
    beta, old = tensors["beta"].float(), state.float().flatten()
    grown, between = g.cumsum(0).exp(), g[1].exp()
    below = b(-b(k[1] * k[0]) * beta[1] * between)
    written, keys = b(v * beta), b(k * beta * grown)
    inner = torch.stack([written[0], b(written[1] + below * written[0])])
    grown_keys = torch.stack([keys[0], b(keys[1] + below * keys[0])])
    new = b(inner - b(grown_keys * old))
    read = b(b(q * scale * grown) * old)
    own, other = b(b(q * k) * scale), b(b(q[1] * k[0]) * scale * between)
    assert torch.equal(out[0].flatten(), (read[0] + b(own[0] * new[0])).bfloat16())
    assert torch.equal(out[1].flatten(), (read[1] + b(other * new[0] + own[1] * new[1])).bfloat16())
    kept = b(old * grown[1]) + b(new[0] * b(k[0] * between) + new[1] * k[1])
    assert torch.equal(final.flatten(), kept.bfloat16())


def test_the_corner_of_the_inverse_rounds_between_its_products():
    """Token 33 hangs on 32, that on 1, and that on 0, by numbers of 8 bits; only token 0 has a value."""
    first, last = 1.015625, 1.1171875
    key = torch.zeros(34, 1, 8)
    key[0, 0, 0] = key[1, 0, 1] = key[32, 0, 2] = key[33, 0, 3] = 1.0
    key[1, 0, 0] = key[32, 0, 1] = first
    key[33, 0, 2] = last
    query, value = torch.zeros(34, 1, 8), torch.zeros(34, 1, 8)
    query[33, 0, 3] = value[0] = 1.0
    given = {"beta": torch.ones(34, 1).bfloat16(), "initial_state": torch.zeros(1, 1, 8, 8).bfloat16()}
    query, key, value = (one.bfloat16() for one in (query, key, value))
    out, _ = torch.ops.npu.chunk_gated_delta_rule(query, key, value, **given, actual_seq_lengths=int32(34))
    product = torch.tensor(first * first).bfloat16().item()
    assert product != first * first
    assert (out[33] == -torch.tensor(last * product).bfloat16()).all()
    assert torch.tensor(last * product).bfloat16() != torch.tensor(last * first * first).bfloat16()


def test_scale_is_one_unless_it_is_given(call):
    assert torch.equal(run(call | {"scale": None})[0], run(call | {"scale": 1.0})[0])


def test_chunk_states_with_gaps_are_copied_and_lost(call):
    wide = torch.zeros(CHUNKS, HEADS, DV, 2 * DK).bfloat16()
    run(call | {"chunk_state": wide[..., ::2]})
    assert not wide.any()


def test_more_chunks_than_states_are_a_fault(call):
    run(call | {"chunk_state": call["chunk_state"][:CHUNKS]})
    with pytest.raises(DeviceFault, match="chunk_state has 4 states"):
        run(call | {"chunk_state": call["chunk_state"][: CHUNKS - 1]})


def test_lengths_beyond_the_tokens_are_undefined(call):
    with pytest.raises(UndefinedBehaviour, match=r"^chunk_gated_delta_rule: .* of 200 tokens"):
        run(call | {"actual_seq_lengths": int32(130, 0, 64, 7)})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"beta": None}, "beta must be provided"),
        ({"initial_state": None}, "initial_state must be provided"),
        ({"actual_seq_lengths": None}, "actual_seq_lengths must be provided"),
        ({"query": torch.zeros(TOKENS, DK).bfloat16()}, "query/key/value must be 3D"),
        ({"g": torch.zeros(TOKENS)}, "g must be 2D"),
        ({"query": torch.zeros(TOKENS, KEYS, DK).half()}, "query was float16"),
        ({"initial_state": torch.zeros(4, HEADS, DV, DK)}, "only supported on Ascend950"),
        ({"actual_seq_lengths": torch.tensor(LENGTHS)}, "actual_seq_lengths must be int32"),
        ({"g": torch.zeros(TOKENS, HEADS).bfloat16()}, "g must be float32"),
        ({"chunk_state": torch.zeros(6, HEADS, DV, DK)}, "chunk_state was float32; allowed: bfloat16"),
        ({"chunk_state": torch.zeros(6, HEADS, DK, DV).bfloat16()}, "chunk_state shape must match"),
        ({"key": torch.zeros(TOKENS, 2, DK).bfloat16()}, "key shape must match query"),
        ({"beta": torch.zeros(TOKENS, 3).bfloat16()}, r"beta shape must be \(T, Nv\)"),
        ({"actual_seq_lengths": int32(1, 2)}, "actual_seq_lengths size must equal initial_state dim 0"),
    ],
)
def test_what_the_host_code_refuses(call, spoil, words):
    with pytest.raises(OperatorRejected, match=words):
        run(call | spoil)


@pytest.mark.parametrize(
    ("key_heads", "heads", "key_dim", "words"),
    [
        (2, 3, 16, "nv must be an integer multiple of nk"),
        (65, 65, 16, "nk and nv must be <= 64"),
        (1, 1, 144, "dk and dv must be <= 128"),
    ],
)
def test_sizes_that_are_refused(key_heads, heads, key_dim, words):
    key = torch.zeros(4, key_heads, key_dim).bfloat16()
    given = {"beta": torch.zeros(4, heads).bfloat16(), "actual_seq_lengths": int32(4)}
    given["initial_state"] = torch.zeros(1, heads, 8, key_dim).bfloat16()
    with pytest.raises(OperatorRejected, match=words):
        torch.ops.npu.chunk_gated_delta_rule(key, key, torch.zeros(4, heads, 8).bfloat16(), **given)
