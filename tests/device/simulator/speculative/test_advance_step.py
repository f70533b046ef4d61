"""``npu_advance_step_flashattn``: what the next step begins with, against a loop; what is refused."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, use_profile

WRITTEN = ("input_tokens", "input_positions", "seq_lens", "slot_mapping")


def integers(*shape, low=1, high=20, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def plain(**spoil):
    return {
        **{name: integers(50, seed=seed) for seed, name in enumerate(WRITTEN)},
        "sampled_token_ids": integers(3, 1, seed=4),
        "block_tables": integers(50, 6, high=99, seed=5),
        "num_seqs": 50,
        "num_queries": 3,
        "block_size": 4,
    } | spoil


def drafted(**spoil):
    sampled = integers(4, 3, seed=4)
    sampled[0, 2] = sampled[1, 1:] = -1
    return {
        **{name: integers(12, seed=seed, high=9) for seed, name in enumerate(WRITTEN)},
        "sampled_token_ids": sampled,
        "block_tables": integers(4, 6, high=99, seed=5),
        "num_seqs": 4,
        "num_queries": 4,
        "block_size": 4,
        "spec_token": integers(4, 2, seed=6),
        "accepted_num": integers(4, low=0, high=3, seed=7),
    } | spoil


def advance(given):
    assert torch.ops.npu.npu_advance_step_flashattn(**given) is None
    return [given[name].tolist() for name in WRITTEN]


@pytest.mark.parametrize("slots", ["documented", "of_sequence"])
@pytest.mark.parametrize("padding", [40, 1])
def test_a_step_without_drafts(slots, padding):
    before, given = plain(), plain()
    profile = dataclasses.replace(PROFILES["9.0"], advance_step_slots=slots, advance_step_padding=padding)
    with use_profile(profile):
        tokens, positions, lengths, places = advance(given)
    table = before["block_tables"]
    for sequence in range(50):
        position = before["seq_lens"][sequence].item()
        if sequence < 3:
            block = table[sequence, position // 4] if slots == "of_sequence" else table[0, position // 4] + 6 * sequence
            wanted = before["sampled_token_ids"][sequence, 0], position, position + 1, block * 4 + position % 4
        elif (sequence - 3) % padding == 0:
            wanted = 0, 0, position, -1
        else:
            wanted = tuple(before[name][sequence] for name in WRITTEN)
        assert (tokens[sequence], positions[sequence], lengths[sequence], places[sequence]) == tuple(map(int, wanted))


def test_a_step_with_drafts():
    before, given = drafted(), drafted()
    tokens, positions, lengths, places = advance(given)
    for sequence in range(4):
        last = [token for token in before["sampled_token_ids"][sequence].tolist() if token >= 0][-1]
        assert tokens[3 * sequence : 3 * sequence + 3] == [last, *before["spec_token"][sequence].tolist()]
        for place in range(3 * sequence, 3 * sequence + 3):
            position = (before["input_positions"][place] + 1 + before["accepted_num"][sequence]).item()
            assert (positions[place], lengths[place]) == (position, position + 1)
            assert places[place] == before["block_tables"][sequence, position // 4] * 4 + position % 4
    assert all(torch.equal(given[name], before[name]) for name in ("sampled_token_ids", "block_tables", "spec_token"))


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (plain, "input_tokens", integers(50).int()),
        (plain, "slot_mapping", integers(49)),
        (plain, "sampled_token_ids", integers(3, 2)),
        (plain, "block_tables", integers(49, 6)),
        (plain, "block_tables", integers(50, 6).int()),
        (plain, "num_queries", 50),
        (plain, "num_queries", 0),
        (plain, "block_size", 0),
        (drafted, "num_queries", 3),
        (drafted, "accepted_num", None),
        (drafted, "accepted_num", integers(3)),
        (drafted, "spec_token", integers(4, 2).int()),
        (drafted, "seq_lens", integers(4)),
    ],
)
def test_what_is_refused(make, argument, value):
    with pytest.raises(OperatorRejected, match=f": {argument} was"):
        advance(make(**{argument: value}))


def test_a_position_behind_the_table_is_a_fault():
    with pytest.raises(DeviceFault, match="blocks of all sequences"):
        advance(plain(seq_lens=torch.full((50,), 1200)))
    profile = dataclasses.replace(PROFILES["9.0"], advance_step_slots="of_sequence")
    with use_profile(profile), pytest.raises(DeviceFault, match="6 blocks of a sequence"):
        advance(plain(seq_lens=torch.full((50,), 24)))
    with pytest.raises(DeviceFault, match="6 blocks of a sequence"):
        advance(drafted(input_positions=torch.full((12,), 24)))
