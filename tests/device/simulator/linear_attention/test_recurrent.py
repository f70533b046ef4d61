"""``npu_recurrent_gated_delta_rule`` and its functional form against the rule in float64; slots; refusals."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

LENGTHS = [2, 3, 1]
TOKENS, KEYS, HEADS, DK, DV, SLOTS = 6, 2, 4, 24, 16, 11


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def call(rule):
    return rule.tokens(TOKENS, (KEYS, HEADS), (DK, DV), gate=3) | {
        "state": rule.draw(SLOTS, HEADS, DV, DK, seed=3),
        "actual_seq_lengths": int32(*LENGTHS),
        "ssm_state_indices": int32(7, 2, 9, 0, 4, 5),
    }


def run(call):
    return torch.ops.npu.npu_recurrent_gated_delta_rule(**call)


@pytest.mark.parametrize("gates", ["g", "gk", "both", "none"])
@pytest.mark.parametrize("accepted", [None, [2, 1, 1], [1, 3, 1]])
def test_each_sequence_follows_the_rule(call, rule, gates, accepted):
    gk = -rule.uniform(TOKENS, HEADS, DK, seed=6)
    call["g"], call["gk"] = (call["g"] if gates in ("g", "both") else None), (gk if gates in ("gk", "both") else None)
    call["num_accepted_tokens"] = None if accepted is None else int32(*accepted)
    before, slots = call["state"].clone(), call["ssm_state_indices"].tolist()
    out = run(call)
    assert out.dtype == torch.bfloat16
    start, written = 0, set()
    for i, length in enumerate(LENGTHS):
        rows = slice(start, start + length)
        first = slots[start + (accepted[i] if accepted else 1) - 1]
        given = [call[name][rows] for name in ("query", "key", "value", "beta")]
        decays = [None if call[name] is None else call[name][rows] for name in ("g", "gk")]
        golden = rule.exact(before[first], *given, call["scale"], *decays)
        assert rule.holds(out[rows], golden.outputs, golden.output_sizes)
        assert rule.holds(call["state"][slots[rows]], golden.states, golden.sizes)
        written |= set(slots[rows])
        start += length
    kept = [slot for slot in range(SLOTS) if slot not in written]
    assert torch.equal(call["state"][kept], before[kept])


def test_orthonormal_keys_store_values_exactly(rule):
    key = torch.eye(4)[:, None].bfloat16()  # token t has key t
    value, state = rule.draw(4, 1, 8), torch.zeros(4, 1, 8, 4).bfloat16()
    out = torch.ops.npu.npu_recurrent_gated_delta_rule(
        key, key, value, state, beta=torch.ones(4, 1).bfloat16(), scale=1.0, actual_seq_lengths=int32(4),
        ssm_state_indices=int32(0, 1, 2, 3),
    )  # fmt: skip
    assert torch.equal(out, value)
    assert torch.equal(state[3, 0], value[:, 0].T)


def test_one_call_is_steps_of_one_token_but_for_the_rounding_of_states(call, rule):
    """States of 16 bit that are exact: then a call of three tokens is three calls of one."""
    tokens = 3
    key = torch.eye(4)[torch.tensor([0, 1, 0])][:, None].bfloat16()
    value = rule.draw(tokens, 1, 8).round()
    state = torch.zeros(4, 1, 8, 4).bfloat16()
    given = {"beta": torch.full((tokens, 1), 0.5).bfloat16(), "scale": 1.0}
    whole, steps = state.clone(), state.clone()
    options = {"actual_seq_lengths": int32(3), "ssm_state_indices": int32(1, 1, 1)}
    out = torch.ops.npu.npu_recurrent_gated_delta_rule(key, key, value, whole, **given, **options)
    answers = [
        torch.ops.npu.npu_recurrent_gated_delta_rule(
            key[t : t + 1], key[t : t + 1], value[t : t + 1], steps, beta=given["beta"][:1], scale=1.0,
            actual_seq_lengths=int32(1), ssm_state_indices=int32(1),
        )
        for t in range(tokens)
    ]  # fmt: skip
    assert torch.equal(torch.cat(answers), out)
    assert torch.equal(steps, whole)


def test_the_functional_form_leaves_the_pool_alone(call):
    before = call["state"].clone()
    out, state = torch.ops.npu.npu_recurrent_gated_delta_rule_functional(**call)
    assert torch.equal(call["state"], before)
    assert torch.equal(run(call), out)
    assert torch.equal(call["state"], state)


def test_rows_of_no_sequence_are_not_written(call):
    call["actual_seq_lengths"] = int32(2, 0, 1)
    out = run(call)
    assert torch.equal(out[3:], unwritten((3, HEADS, DV), torch.bfloat16))


def test_lengths_behind_a_number_of_skipped_tokens(call):
    """The same tokens behind one that is skipped, in the form that vllm-ascend's kernel has."""
    expected = run(call | {"state": call["state"].clone()})
    longer = {
        name: torch.cat([call[name][:1], call[name]])
        for name in ("query", "key", "value", "beta", "g", "ssm_state_indices")
    }
    with changed(recurrent_lengths="skipped_and_lengths"):
        out = run(call | longer | {"actual_seq_lengths": int32(1, *LENGTHS)})
    assert torch.equal(out[1:], expected)
    assert torch.equal(out[:1], unwritten((1, HEADS, DV), torch.bfloat16))


def test_float32_states_are_a_choice(call):
    call["state"] = call["state"].float()
    with pytest.raises(OperatorRejected, match="state was float32"):
        run(call)
    with changed(recurrent_state_dtypes=("bfloat16", "float32")):
        run(call)
    assert not torch.equal(call["state"], call["state"].bfloat16().float())  # not rounded where they are stored


def test_a_shared_slot_is_a_choice(call):
    call["ssm_state_indices"] = int32(7, 2, 9, 0, 7, 5)  # the second sequence writes what the first begins with
    ordered, spoiled = call["state"].clone(), call["state"].clone()
    out = run(call | {"state": ordered})
    with changed(linear_shared_states="unpredictable"):
        other = run(call | {"state": spoiled})
    assert torch.equal(other[:2], unwritten((2, HEADS, DV), torch.bfloat16))
    assert torch.equal(spoiled[[7, 2]], unwritten((2, HEADS, DV, DK), torch.bfloat16))
    assert torch.equal(other[5:], out[5:])
    assert torch.equal(spoiled[5], ordered[5])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"actual_seq_lengths": int32(9, 0, 0)}, "9 tokens"),
        ({"actual_seq_lengths": int32(2, 3, 2)}, "2 tokens from 5 on, of 6"),
        ({"actual_seq_lengths": int32(-1, 3, 2)}, "-1 tokens"),
        ({"num_accepted_tokens": int32(2, 0, 1)}, r"num_accepted_tokens\[1\] is 0"),
        ({"num_accepted_tokens": int32(2, 3, 2)}, r"num_accepted_tokens\[2\] is 2; allowed: 1 to 1"),
    ],
)
def test_what_tensors_hold_beyond_the_contract_is_undefined(call, spoil, words):
    with pytest.raises(UndefinedBehaviour, match=words):
        run(call | spoil)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_pool_is_a_fault(call, slot):
    with pytest.raises(DeviceFault, match=rf"is {slot}, there are {SLOTS} slots"):
        run(call | {"ssm_state_indices": int32(7, 2, 9, 0, slot, 5)})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"scale": None}, "scale cannot be empty"),
        ({"beta": None}, "beta was None"),
        ({"actual_seq_lengths": None}, "actual_seq_lengths was None"),
        ({"ssm_state_indices": None}, "ssm_state_indices was None"),
        ({"query": torch.zeros(TOKENS, KEYS, DK, dtype=torch.float16)}, "query was float16"),
        ({"g": torch.zeros(TOKENS, HEADS, dtype=torch.bfloat16)}, "g was bfloat16"),
        ({"gk": torch.zeros(TOKENS, KEYS, DK)}, "gk was of shape"),
        ({"ssm_state_indices": torch.arange(TOKENS)}, "ssm_state_indices was int64"),
        ({"ssm_state_indices": int32(1, 2, 3)}, "ssm_state_indices was of shape"),
        ({"key": torch.zeros(TOKENS, 3, DK).bfloat16()}, "key was of shape"),
        ({"state": torch.zeros(SLOTS, HEADS, DK, DV).bfloat16()}, "state was of shape"),
        ({"num_accepted_tokens": int32(1, 1)}, "num_accepted_tokens was of shape"),
    ],
)
def test_what_is_refused(call, spoil, words):
    run(call)
    with pytest.raises(OperatorRejected, match=words):
        run(call | spoil)


def test_heads_that_do_not_share_keys_evenly_are_refused(call):
    three = torch.zeros(TOKENS, 3, DK).bfloat16()
    with pytest.raises(OperatorRejected, match="value was of 4 heads; allowed: a multiple of 3"):
        run(call | {"query": three, "key": three})
    with pytest.raises(OperatorRejected, match="value dim should be 3"):
        run(call | {"value": call["value"][None]})
    with pytest.raises(OperatorRejected, match="initial_state dim should be 4"):
        torch.ops.npu.npu_recurrent_gated_delta_rule_functional(**(call | {"state": call["state"][0]}))
