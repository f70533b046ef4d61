"""Inputs as they were before a call: any write is seen, whether they are copied or, being large, hashed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from npudiff.model.fingerprint import changed_tensors, fingerprint


@pytest.fixture(autouse=True, params=["copied", "hashed"])
def _kept(request, monkeypatch):
    if request.param == "hashed":
        monkeypatch.setattr("npudiff.model.fingerprint.MOST_COPIED", -1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_a_fingerprint_changes_with_any_element_and_with_nothing_else(dtype):
    for whole in (torch.arange(1, 40).to(dtype), torch.arange(1, 80).to(dtype)[::2], torch.arange(1, 41).to(dtype)[1:]):
        before = fingerprint(whole)
        assert fingerprint(whole) == before
        for place in (0, 17, len(whole) - 1):
            changed = whole.clone()
            changed[place] = 0
            assert fingerprint(changed) != before


@pytest.mark.parametrize("rows", [4, 3000])
@pytest.mark.parametrize("pair", [(0, 1), (1, 3), (0, 2), (2, -1)])
def test_a_fingerprint_sees_rows_that_change_places_and_writes_between_rows(rows, pair):
    first, second = pair
    whole = torch.arange(rows * 24, dtype=torch.bfloat16).reshape(rows, 24)
    view = whole[:, :16]
    before = fingerprint(view)
    whole[[first, second]] = whole[[second, first]]
    assert fingerprint(view) != before
    whole[[first, second]] = whole[[second, first]]
    assert fingerprint(view) == before
    whole[1, 20] += 64
    assert fingerprint(view) != before


_SIGN_BIT = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 4096, 40_000])
def test_a_fingerprint_sees_signs_that_change_wherever_they_are(dtype, count):
    whole = torch.arange(1, 70_000).to(dtype)
    before = fingerprint(whole)
    per_word = 8 // dtype.itemsize
    for first in (0, per_word - 1, 4096, 65_536 // dtype.itemsize - 1):
        for apart in (1, per_word):  # as the highest bit of every word, too
            changed = whole.clone()
            changed[first::apart][:count] *= -1
            assert fingerprint(changed) != before
    zeros = torch.zeros(70_000, dtype=dtype)
    negative = zeros.clone()
    negative.view(_SIGN_BIT[dtype.itemsize])[per_word - 1 :: per_word][:count] = torch.iinfo(
        _SIGN_BIT[dtype.itemsize]
    ).min
    assert fingerprint(zeros) != fingerprint(negative)


@pytest.mark.parametrize("size", [8, 4096, 32_768, 65_536, 131_072])
@pytest.mark.parametrize("apart", [1, 2, 3])
def test_a_fingerprint_sees_blocks_that_change_places_at_any_distance(size, apart):
    """Pages of a cache, of which those that are equal but for one element are the hardest."""
    blocks = torch.zeros(5, size, dtype=torch.uint8)
    blocks[:, size // 2] = torch.arange(5, dtype=torch.uint8)
    before = fingerprint(blocks)
    moved = blocks.clone()
    moved[[1, 1 + apart]] = moved[[1 + apart, 1]]
    assert fingerprint(moved) != before
    assert fingerprint(moved.roll(1, 0)) != before


@pytest.mark.parametrize("size", range(65_534, 65_546))
def test_a_fingerprint_sees_the_last_byte_and_how_many_there_are(size):
    whole = torch.zeros(size, dtype=torch.uint8)
    before = fingerprint(whole)
    assert fingerprint(torch.zeros(size + 1, dtype=torch.uint8)) != before
    whole[-1] = 1
    assert fingerprint(whole) != before


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.t_, lambda x: x.unsqueeze_(0), lambda x: x.requires_grad_(), lambda x: x.resize_(2, 3)],
)
def test_a_fingerprint_sees_what_becomes_of_a_tensor_whose_bytes_stay(change):
    matrix = torch.ones(3, 3)
    before = fingerprint(matrix)
    change(matrix)
    assert fingerprint(matrix) != before


def test_a_fingerprint_sees_a_byte_in_the_last_part_of_a_word():
    whole = torch.arange(13, dtype=torch.uint8)
    before = fingerprint(whole)
    whole[[11, 12]] = whole[[12, 11]]
    assert fingerprint(whole) != before


def test_a_fingerprint_names_the_tensors_of_nested_inputs():
    @dataclass
    class Pool:
        key: torch.Tensor

    @dataclass
    class Inputs:
        query: torch.Tensor
        pool: Pool
        sinks: None = None
        scale: float = 1.0

    assert set(fingerprint(Inputs(torch.ones(2), Pool(torch.ones(3))))) == {"query", "pool.key"}


def test_what_is_compared_at_once_is_compared_with_what_was_kept():
    whole = torch.arange(100_000, dtype=torch.int16)
    before = fingerprint(whole, "x")
    assert fingerprint(whole, "x", kept=False) == before
    whole[70_001] += 1
    assert fingerprint(whole, "x", kept=False) != before


def test_what_changed_is_named():
    @dataclass
    class Inputs:
        query: torch.Tensor
        key: torch.Tensor

    inputs = Inputs(torch.ones(9), torch.zeros(9))
    before = fingerprint(inputs)
    assert changed_tensors(inputs, before) == []
    inputs.key[8] = 1
    assert changed_tensors(inputs, before) == ["key"]
