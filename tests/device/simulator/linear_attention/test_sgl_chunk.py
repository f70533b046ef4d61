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
