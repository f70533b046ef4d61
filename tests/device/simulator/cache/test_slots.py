"""Addresses, worked out by hand, and which tokens are written."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault
from npudiff.device.simulator.cache.slots import Rows, Tiles, check_slots, read, write, written_tokens


@pytest.mark.parametrize(
    ("slot", "rows"),
    [(0, [0, 4]), (1, [1, 5]), (3, [3, 7]), (4, [8, 12]), (5, [9, 13]), (7, [11, 15]), (8, [16, 20])],
)
def test_nz_rows_of_blocks_of_4_and_two_tiles(slot, rows):
    """Token of 64 bytes: D = 32 in 16 bit. A row is 32 bytes."""
    assert Tiles(token=64, block_size=4).units(torch.tensor([slot])).tolist() == [rows]


@pytest.mark.parametrize(
    ("token", "block_size", "slot", "rows"),
    [
        (32, 4, 6, [6]),  # one tile: NZ is ND
        (96, 1, 2, [6, 7, 8]),  # blocks of one token: NZ is ND
        (128, 16, 17, [65, 81, 97, 113]),
        (96, 2, 3, [7, 9, 11]),
    ],
)
def test_nz_rows_of_other_sizes(token, block_size, slot, rows):
    assert Tiles(token, block_size).units(torch.tensor([slot])).tolist() == [rows]


def test_every_nz_row_belongs_to_one_slot():
    layout = Tiles(token=160, block_size=6)
    rows = layout.units(torch.arange(layout.slots(160 * 18))).flatten()
    assert rows.sort().values.tolist() == list(range(5 * 18))


def test_slots_of_a_memory_are_whole_tokens_or_whole_blocks():
    assert Rows(48).slots(48 * 5 + 47) == 5
    assert Tiles(64, 4).slots(64 * 4 * 3 - 1) == 8


@pytest.mark.parametrize("layout", [Rows(96), Tiles(96, 4)])
def test_what_is_written_is_read_and_all_else_stays(layout):
    memory = torch.full((96 * 12 + 5,), 7, dtype=torch.uint8)
    tokens = torch.randint(8, 256, (3, 96)).to(torch.uint8)
    slots = torch.tensor([9, 0, 4])
    write(memory, layout, tokens, slots)
    assert torch.equal(read(memory, layout, slots), tokens)
    others = torch.tensor([slot for slot in range(12) if slot not in (9, 0, 4)])
    assert (read(memory, layout, others) == 7).all()
    assert (memory == 7).sum() == memory.numel() - tokens.numel()


@pytest.mark.parametrize(
    ("slots", "tokens"),
    [
        ([3, 1, 2], {0, 1, 2}),
        ([-1, 4, -7], {1}),
        ([5, 5, 5], {2}),
        ([2, 0, 2, -1, 0], {2, 4}),
        ([], set()),
        ([-1], set()),
    ],
)
def test_negative_slots_are_skipped_and_the_last_of_equal_ones_stays(slots, tokens):
    assert set(written_tokens(torch.tensor(slots, dtype=torch.int64)).tolist()) == tokens


def test_the_first_slot_beyond_a_cache_is_named():
    with pytest.raises(DeviceFault, match=r"some_op: slots\[2\] is 9, cache has 8 slots \[error 507035\]"):
        check_slots("some_op", "slots", torch.tensor([7, -1, 9, 10]), 8, "cache")
