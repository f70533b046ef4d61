"""``npu_chunk_gated_delta_rule`` against the rule in float64 token by token, beside exact cases and refusals."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

TOKENS, KEYS, HEADS, DK, DV = 150, 2, 4, 32, 24
LENGTHS = [70, 0, 64, 16]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def call(rule):
    return rule.tokens(TOKENS, (KEYS, HEADS), (DK, DV)) | {
        "initial_state": rule.draw(len(LENGTHS), HEADS, DV, DK, seed=3),
        "actual_seq_lengths": int32(*LENGTHS),
    }


def run(call):
    return torch.ops.npu.npu_chunk_gated_delta_rule(**call)


def goldens(call, rule):
    """Yield rows, output and last state of each sequence with tokens."""
    start = 0
    for i, length in enumerate(call["actual_seq_lengths"].tolist()):
        rows, start = slice(start, start + length), start + length
        if length:
            given = [call[name][rows] for name in ("query", "key", "value", "beta")]
            gates = None if call["g"] is None else call["g"][rows]
            golden = rule.exact(call["initial_state"][i], *given, call["scale"], gates)
            yield i, rows, golden.outputs, golden.states[-1]


def worst(given, value):
    """Return the largest error over the largest value."""
    return float((given.double() - value).abs().max() / value.abs().max())


@pytest.mark.parametrize("with_gates", [True, False])
def test_chunks_are_the_rule_token_by_token(call, rule, with_gates):
    call["g"] = call["g"] if with_gates else None
    before = call["initial_state"].clone()
    with changed(chunk_rounding="float32"):
        out, state = run(call)
    for i, rows, outputs, last in goldens(call, rule):
        # float32 within, then one rounding: 2 ** -9 of what is rounded.
        assert bool(
            ((out[rows].double() - outputs).abs() <= 2.0**-8 * outputs.abs() + 1e-5 * outputs.abs().max()).all()
        )
        assert bool(((state[i].double() - last).abs() <= 2.0**-8 * last.abs() + 1e-5 * last.abs().max()).all())
    assert torch.equal(call["initial_state"], before)
    assert torch.equal(state[1], before[1])  # no tokens
    out_bf16, state_bf16 = run(call)
    assert not torch.equal(out, out_bf16)
    for i, rows, outputs, last in goldens(call, rule):
        # op-plugin's own test allows 1 %; each chunk rounds its products and the state.
        assert worst(out_bf16[rows], outputs) < 0.01
        assert worst(state_bf16[i], last) < 0.01


def test_products_and_states_round_to_bfloat16_between_chunks(call, rule):
    """A number of chunks whose state cannot be kept: 1 + 2 ** -8 a chunk, halved each time it is rounded to even."""
    chunks = 3
    tokens = 64 * chunks
    key = torch.zeros(tokens, 1, 16).bfloat16()
    key[::64, 0, 0] = 1.0  # one write a chunk, with beta 2 ** -8 towards v = 1 + old
    state = torch.ones(1, 1, 8, 16).bfloat16()
    value = torch.full((tokens, 1, 8), 2.0).bfloat16()
    beta = torch.full((tokens, 1), 2.0**-8).bfloat16()
    given = {"beta": beta, "actual_seq_lengths": int32(tokens), "scale": 1.0, "initial_state": state}
    _, narrow = torch.ops.npu.npu_chunk_gated_delta_rule(key, key, value, **given)
    assert (narrow[0, 0, :, 0] == 1.0).all()  # 1 + 2 ** -8 is a tie, and 1 is even
    with changed(chunk_rounding="float32"):
        _, wide = torch.ops.npu.npu_chunk_gated_delta_rule(key, key, value, **given)
    exact = 2 - (1 - 2.0**-8) ** chunks
    assert (wide[0, 0, :, 0].double() - exact).abs().max() <= 2.0**-8
    assert (wide[0, 0, :, 0] > 1.0).all()


def test_the_corner_of_the_inverse_is_put_together_from_rounded_halves():
    """Token 32 has the key of token 0: what it writes hangs on one number of the corner, which 16 bit hold."""
    key = torch.eye(64)[:, None].bfloat16()
    key[32] = key[0]
    beta = torch.ones(64, 1).bfloat16()
    beta[32] = 0.75
    value = torch.zeros(64, 1, 8).bfloat16()
    value[0], value[32] = 1.5, 4.0
    given = {"beta": beta, "actual_seq_lengths": int32(64), "scale": 1.0}
    state = torch.zeros(1, 1, 8, 64).bfloat16()
    out, final = torch.ops.npu.npu_chunk_gated_delta_rule(key, key, value, initial_state=state, **given)
    assert (out[32] == 1.5 + 0.75 * (4.0 - 1.5)).all()
    assert (final[0, 0, :, 0] == 1.5 + 0.75 * (4.0 - 1.5)).all()


def test_orthonormal_keys_store_values_exactly(rule):
    key = torch.eye(64)[:, None].bfloat16()
    value, state = rule.draw(64, 1, 8), torch.zeros(1, 1, 8, 64).bfloat16()
    beta = torch.ones(64, 1).bfloat16()
    given = {"beta": beta, "initial_state": state, "actual_seq_lengths": int32(64), "scale": 1.0}
    out, final = torch.ops.npu.npu_chunk_gated_delta_rule(key, key, value, **given)
    assert torch.equal(out, value)
    assert torch.equal(final[0, 0], value[:, 0].T)


def test_a_cut_between_chunks_gives_the_same_bits(call):
    call["g"] = call["g"] / 100  # a state outlives its chunk
    whole, state = run(call | {"actual_seq_lengths": int32(150), "initial_state": call["initial_state"][:1]})
    names = ("query", "key", "value", "beta", "g")
    current, outs = call["initial_state"][:1], []
    for rows in (slice(0, 64), slice(64, 128), slice(128, 150)):
        part = {name: call[name][rows] for name in names}
        lengths = int32(rows.stop - rows.start)
        out, current = run(call | part | {"actual_seq_lengths": lengths, "initial_state": current})
        outs.append(out)
    assert torch.equal(torch.cat(outs), whole)
    assert torch.equal(current, state)


def test_strong_gates_are_finite_unless_exponentials_are_divided(call, rule):
    call["g"] = torch.full_like(call["g"], -3.0)
    out, state = run(call)
    assert out.isfinite().all()
    for i, rows, outputs, last in goldens(call, rule):
        assert worst(out[rows], outputs) < 0.01
        assert worst(state[i], last) < 0.01
    with changed(chunk_decay="quotient"):
        assert run(call)[0].isnan().any()


def test_rows_behind_the_last_sequence_are_not_written(call):
    out, _ = run(call | {"actual_seq_lengths": int32(70, 0, 64, 10)})
    assert torch.equal(out[144:], unwritten((6, HEADS, DV), torch.bfloat16))


def test_the_smoke_call_of_vllm_ascend_runs():
    """``ops/gdn.py`` asks with it whether the operator is there."""
    zeros = torch.zeros(64, 1, 128).bfloat16()
    out, state = torch.ops.npu.npu_chunk_gated_delta_rule(
        zeros, zeros, zeros, beta=torch.full((64, 1), 0.5).bfloat16(), g=torch.full((64, 1), -0.1), scale=128**-0.5,
        initial_state=torch.zeros(1, 1, 128, 128).bfloat16(), actual_seq_lengths=int32(64),
    )  # fmt: skip
    assert not out.any()
    assert not state.any()


@pytest.mark.parametrize("lengths", [int32(70, 0, 64, 17), int32(-1, 0, 64, 16)])
def test_lengths_beyond_the_tokens_are_undefined(call, lengths):
    with pytest.raises(UndefinedBehaviour, match="of 150 tokens"):
        run(call | {"actual_seq_lengths": lengths})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"beta": None}, "beta cannot be empty"),
        ({"initial_state": None}, "initial_state cannot be empty"),
        ({"actual_seq_lengths": None}, "actual_seq_lengths cannot be empty"),
        ({"scale": None}, "scale cannot be empty"),
        ({"value": torch.zeros(0, HEADS, DV).bfloat16()}, "value cannot be empty"),
        ({"value": torch.zeros(TOKENS, HEADS * DV).bfloat16()}, "value dim should be 3"),
        ({"query": torch.zeros(TOKENS, KEYS, DK, dtype=torch.float16)}, "query was float16.*161002"),
        ({"initial_state": torch.zeros(4, HEADS, DV, DK)}, "initial_state was float32"),
        ({"initial_state": torch.zeros(4, HEADS, DK, DV).bfloat16()}, "initial_state was of shape"),
        ({"actual_seq_lengths": torch.tensor(LENGTHS)}, "actual_seq_lengths was int64"),
        ({"actual_seq_lengths": int32(70, 64, 16)}, "initial_state was of shape"),
        ({"g": torch.zeros(TOKENS, HEADS).bfloat16()}, "g was bfloat16"),
        ({"beta": torch.zeros(TOKENS, KEYS).bfloat16()}, "beta was of shape"),
        ({"key": torch.zeros(TOKENS, KEYS, 16).bfloat16()}, "key was of shape"),
    ],
)
def test_what_is_refused(call, spoil, words):
    with pytest.raises(OperatorRejected, match=words):
        run(call | spoil)


def test_dims_above_128_are_refused():
    wide = torch.zeros(4, 1, 130).bfloat16()
    given = {"beta": torch.zeros(4, 1).bfloat16(), "actual_seq_lengths": int32(4), "scale": 1.0}
    with pytest.raises(OperatorRejected, match="key was 130; allowed: 1 to 128"):
        torch.ops.npu.npu_chunk_gated_delta_rule(
            wide, wide, wide[..., :8], initial_state=torch.zeros(1, 1, 8, 130).bfloat16(), **given
        )
