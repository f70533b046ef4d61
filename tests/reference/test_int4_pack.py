from __future__ import annotations

import itertools

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.reference.int4_pack import Int4PackInputs, int4_pack


def packed(values, encoding="two's complement"):
    return int4_pack(Int4PackInputs(values, encoding))["words"].value


def by_hand(values):
    """Words as Python puts bytes together: nothing but integers."""
    halves = [value & 15 for value in values]
    pairs = bytes(low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True))
    return [int.from_bytes(pairs[at : at + 4], "little", signed=True) for at in range(0, len(pairs), 4)]


def test_numbers_by_hand():
    row = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0], [-1] * 8, [0, 0, 0, 0, 0, 0, 0, -8], [-8, 7, 0, 0, 0, 0, 0, 0]])
    words = packed(row.int())
    assert words.dtype == torch.int32
    assert [word & 0xFFFFFFFF for word in words[:, 0].tolist()] == [0x07654321, 0xFFFFFFFF, 0x80000000, 0x78]


@pytest.mark.parametrize("shape", [(1, 8), (3, 40), (2, 3, 16)])
def test_it_is_what_python_makes_of_bytes(shape):
    count = torch.Size(shape).numel()
    values = torch.tensor(Stream(1, "values").integers(-8, 8, count), dtype=torch.int32).view(shape)
    words = packed(values)
    assert words.shape == (*shape[:-1], shape[-1] // 8)
    assert words.flatten().tolist() == by_hand(values.flatten().tolist())
    assert packed(values + 8, "offset binary").tolist() == words.tolist()
    assert packed(values + 16 * values.flip(-1)).tolist() == words.tolist()
    assert words.contiguous().view(torch.int8).flatten().tolist()[0] & 15 == int(values.flatten()[0]) & 15


def test_all_sixteen_values_keep_apart_in_every_place():
    words = set()
    for place, value in itertools.product(range(8), range(-8, 8)):
        row = torch.zeros(1, 8, dtype=torch.int32)
        row[0, place] = value
        (word,) = packed(row)[0].tolist()
        assert (word >> 4 * place) & 15 == value & 15
        words.add(word)
    assert len(words) == 8 * 15 + 1


def test_all_bits_are_asked_for():
    expected = int4_pack(Int4PackInputs(torch.zeros(2, 8, dtype=torch.int32), "two's complement"))["words"]
    assert not bool(expected.bound.any())
    assert expected.dtype == torch.int32


@pytest.mark.parametrize(
    ("values", "encoding", "message"),
    [
        (torch.zeros(2, 8), "two's complement", "must be int32 of rank 2 or 3, got torch.float32 of rank 2"),
        (torch.zeros(8, dtype=torch.int32), "two's complement", "got torch.int32 of rank 1"),
        (torch.zeros(2, 12, dtype=torch.int32), "two's complement", "a multiple of 8, got 12"),
        (torch.zeros(2, 8, dtype=torch.int32), "ones", "one of two's complement, offset binary, got ones"),
    ],
)
def test_what_contradicts_itself_is_refused(values, encoding, message):
    with pytest.raises(ValueError, match=message):
        int4_pack(Int4PackInputs(values, encoding))
