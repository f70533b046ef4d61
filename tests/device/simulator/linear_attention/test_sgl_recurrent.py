"""``recurrent_gated_delta_rule`` of sgl-kernel-npu against the rule in float64: its norms, gates, pools and faults."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

ROWS, STEPS, KEYS, HEADS, DK, DV, SLOTS = 3, 4, 1, 2, 128, 16, 5
SCALE = DK**-0.5


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


@pytest.fixture
def call(rule):
    """As sglang verifies drafts: states of every step go to scratch, by slots of the pool times the steps."""
    cache = int32(3, 0, 2)
    return {
        "mix_qkv": rule.draw(ROWS, STEPS, 2 * KEYS * DK + HEADS * DV),
        "recurrent_state": rule.draw(SLOTS, HEADS, DV, DK, seed=1),
        "beta": rule.draw(ROWS, STEPS, HEADS, seed=2),
        "scale": SCALE,
        "actual_seq_lengths": int32(4, 2, 3),
        "ssm_state_indices": (cache[:, None] * STEPS + torch.arange(STEPS, dtype=torch.int32)).contiguous(),
        "nk": KEYS,
        "nv": HEADS,
        "intermediate_state": rule.draw(SLOTS * STEPS, HEADS, DV, DK, seed=3),
        "cache_indices": cache,
        "num_accepted_tokens": int32(1, 1, 1),
        "g": -rule.uniform(ROWS, STEPS, HEADS, seed=4),
    }


def run(call):
    return torch.ops.npu.recurrent_gated_delta_rule(**call)


def golden(call, rule, row, first):
    """Return the exact answer for a row that begins with a state."""
    length = int(call["actual_seq_lengths"][row])
    query, key, value = call["mix_qkv"][row, :length].double().split([KEYS * DK, KEYS * DK, HEADS * DV], -1)
    query, key = (one.reshape(length, KEYS, DK) for one in (query, key))
    query, key = (one / (one.square().sum(-1, keepdim=True) + 1e-6).sqrt() for one in (query, key))
    beta, gates = call["beta"][row, :length].double().sigmoid(), None if call["g"] is None else call["g"][row, :length]
    return rule.exact(first, query, key, value.reshape(length, HEADS, DV), beta, SCALE, gates)


@pytest.mark.parametrize("with_gates", [True, False])
@pytest.mark.parametrize("accepted", [None, [1, 1, 1], [4, 2, 3]])
def test_a_verification_follows_the_rule(call, rule, with_gates, accepted):
    call["g"] = call["g"] if with_gates else None
    call["num_accepted_tokens"] = None if accepted is None else int32(*accepted)
    pool, scratch = call["recurrent_state"].clone(), call["intermediate_state"].clone()
    out = run(call)
    written = set()
    for row, length in enumerate(call["actual_seq_lengths"].tolist()):
        slots = call["ssm_state_indices"][row].tolist()
        step = accepted[row] - 1 if accepted else 0
        first = scratch[slots[step]] if step else pool[int(call["cache_indices"][row])]
        answer = golden(call, rule, row, first)
        assert rule.holds(out[row, :length], answer.outputs, answer.output_sizes)
        assert rule.holds(call["intermediate_state"][slots[:length]], answer.states, answer.sizes)
        assert torch.equal(out[row, length:], unwritten((STEPS - length, HEADS, DV), torch.bfloat16))
        written |= set(slots[:length])
    assert torch.equal(call["recurrent_state"], pool)
    kept = [slot for slot in range(SLOTS * STEPS) if slot not in written]
    assert torch.equal(call["intermediate_state"][kept], scratch[kept])


def test_without_scratch_the_pool_itself_is_written(call, rule):
    call |= {"intermediate_state": None, "cache_indices": None, "actual_seq_lengths": int32(1, 1, 1)}
    call["ssm_state_indices"] = int32(4, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0).view(ROWS, STEPS)
    pool = call["recurrent_state"].clone()
    out = run(call)
    for row, slot in enumerate((4, 1, 2)):
        answer = golden(call, rule, row, pool[slot])
        assert rule.holds(out[row, :1], answer.outputs, answer.output_sizes)
        assert rule.holds(call["recurrent_state"][slot][None], answer.states, answer.sizes)
    assert torch.equal(call["recurrent_state"][[0, 3]], pool[[0, 3]])


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-3, 1e-2])
def test_short_keys_are_not_stretched_to_length_one(call, rule, size):
    """The 1e-6 in the root counts: at a norm of 1e-3 it makes 30 %."""
    mixed = call["mix_qkv"].float()
    mixed[..., : 2 * DK] *= size / mixed[..., : 2 * DK].norm(dim=-1, keepdim=True)
    call["mix_qkv"] = mixed.bfloat16()
    pool = call["recurrent_state"].clone()
    out = run(call)
    answer = golden(call, rule, 0, pool[3])
    assert rule.holds(out[0], answer.outputs, answer.output_sizes)


def test_gk_goes_nowhere(call, rule):
    other = call | {"intermediate_state": call["intermediate_state"].clone(), "gk": rule.draw(ROWS, STEPS, HEADS, DK)}
    assert torch.equal(run(call), run(other))
    assert torch.equal(call["intermediate_state"], other["intermediate_state"])


def test_scratch_with_gaps_is_copied_and_the_states_are_lost(call):
    wide = torch.zeros(SLOTS * STEPS, HEADS, DV, 2 * DK).bfloat16()
    call["intermediate_state"] = wide[..., ::2]
    run(call)
    assert not wide.any()


def test_a_shared_slot_is_a_choice(call):
    call["ssm_state_indices"][2] = call["ssm_state_indices"][0]
    scratch = call["intermediate_state"].clone()
    run(call)
    with changed(linear_shared_states="unpredictable"):
        run(call | {"intermediate_state": scratch})
    assert torch.equal(scratch[12:15], unwritten((3, HEADS, DV, DK), torch.bfloat16))
    assert torch.equal(scratch[15], call["intermediate_state"][15])
    assert torch.equal(scratch[:2], call["intermediate_state"][:2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"recurrent_state": torch.zeros(SLOTS, HEADS, DV, DK)}, "recurrent_state is float32 and is read as bfloat16"),
        ({"beta": torch.zeros(ROWS, STEPS, HEADS)}, "beta is float32"),
        ({"ssm_state_indices": torch.zeros(ROWS, STEPS, dtype=torch.int64)}, "ssm_state_indices is int64"),
        ({"actual_seq_lengths": int32(4, 5, 1)}, "for 3 rows of at most 4 tokens"),
        ({"actual_seq_lengths": int32(4, 4)}, "for 3 rows"),
        ({"num_accepted_tokens": int32(1, 0, 1)}, r"num_accepted_tokens\[1\] is 0"),
        ({"num_accepted_tokens": int32(1, 1, 5)}, r"num_accepted_tokens\[2\] is 5"),
        ({"cache_indices": None}, "without cache_indices"),
    ],
)
def test_what_the_host_code_does_not_check_is_undefined(call, spoil, words):
    with pytest.raises(UndefinedBehaviour, match=words):
        run(call | spoil)


@pytest.mark.parametrize(("key_dim", "value_dim", "words"), [(64, 16, "Dk is 64"), (128, 12, "Dv is 12")])
def test_sizes_that_the_kernel_addresses_wrongly_are_undefined(call, key_dim, value_dim, words):
    mixed = torch.zeros(ROWS, STEPS, 2 * key_dim + HEADS * value_dim).bfloat16()
    state = torch.zeros(SLOTS, HEADS, value_dim, key_dim).bfloat16()
    with pytest.raises(UndefinedBehaviour, match=words):
        run(call | {"mix_qkv": mixed, "recurrent_state": state})


@pytest.mark.parametrize(
    "spoil", [{"cache_indices": int32(3, 0, SLOTS)}, {"ssm_state_indices": torch.full((ROWS, STEPS), 99).int()}]
)
def test_slots_outside_are_faults(call, spoil):
    with pytest.raises(DeviceFault):
        run(call | spoil)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"mix_qkv": torch.zeros(ROWS, 2 * DK + HEADS * DV).bfloat16()}, "MixQKV must be 3-dimensional"),
        ({"recurrent_state": torch.zeros(HEADS, DV, DK).bfloat16()}, "State must be 4-dimensional"),
        ({"mix_qkv": torch.zeros(ROWS, STEPS, 16).bfloat16()}, "mix_qkv width mismatch. Expected: 288, Got: 16"),
        (
            {"nv": 4, "nk": 1, "mix_qkv": torch.zeros(ROWS, STEPS, 320).bfloat16()},
            "State third dimension must match nv",
        ),
        ({"beta": torch.zeros(ROWS, HEADS).bfloat16()}, "beta was of shape"),
        ({"ssm_state_indices": int32(0, 1, 2)}, "ssm_state_indices was of shape"),
    ],
)
def test_what_the_host_code_refuses(call, spoil, words):
    with pytest.raises(OperatorRejected, match=words):
        run(call | spoil)


def test_the_shape_of_an_intermediate_state_is_not_looked_at(call):
    """sglang views it with the dims of keys and values the other way round."""
    other = {**call, "intermediate_state": call["intermediate_state"].clone().view(-1, HEADS, DK, DV)}
    out, answer = run(call), run(other)
    assert torch.equal(out[0], answer[0])
    assert torch.equal(call["intermediate_state"].view(-1), other["intermediate_state"].view(-1))
