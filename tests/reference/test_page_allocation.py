from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.reference.page_allocation import PageAllocationInputs, page_allocation

LAWS = settings(max_examples=150, derandomize=True, database=None, deadline=None)


def inputs(prefix, length, last, free, page_size=4):
    return PageAllocationInputs(*(torch.tensor(list(part)) for part in (prefix, length, last, free)), page_size)


def test_the_three_phases_worked_by_hand():
    """5 tokens stand in pages 7 and 3; 8 more fill page 3, take page 9 whole, and begin page 2."""
    result = page_allocation(inputs([5], [13], [3 * 4 + 0], [9, 2, 5]))
    assert result["slots"].value.tolist() == [13, 14, 15, 36, 37, 38, 39, 8]
    assert result["pages_taken"].value.tolist() == [2]
    assert result["slots"].value.dtype == torch.int32


def test_pages_go_to_requests_in_their_order():
    result = page_allocation(inputs([0, 4, 3], [5, 5, 4], [-1, 11, 22], [6, 8, 1, 9]))
    assert result["slots"].value.tolist() == [24, 25, 26, 27, 32, 4, 23]
    assert result["pages_taken"].value.tolist() == [3]


def test_a_decode_takes_a_page_where_its_token_is_the_first_of_one():
    result = page_allocation(inputs([4, 5, 7], [5, 6, 8], [7, 8, 14], [5]))
    assert result["slots"].value.tolist() == [20, 9, 15]


@LAWS
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=4), st.integers(1, 7),
    st.permutations(range(1, 60)),
)  # fmt: skip
def test_invariants_of_the_allocator(growth, size, names):
    names = iter(names)
    last = [next(names) * size + (prefix - 1) % size if prefix else -1 for prefix, _ in growth]
    free = list(names)
    if sum(-(-(prefix + new) // size) for prefix, new in growth) > len(free):
        return
    prefixes = [prefix for prefix, _ in growth]
    result = page_allocation(inputs(prefixes, [sum(pair) for pair in growth], last, free, size))
    slots = result["slots"].value.tolist()
    assert len(set(slots)) == len(slots) == sum(new for _, new in growth)
    assert not {slot // size for slot in slots} & {0}
    start = 0
    for prefix, new in growth:
        own = slots[start : start + new]
        start += new
        assert [slot % size for slot in own] == [(prefix + i) % size for i in range(new)]
        inside = [(a, b) for a, b in itertools.pairwise(own) if b % size]
        assert all(b == a + 1 for a, b in inside)
    wanted = sum(-(-(prefix + new) // size) - -(-prefix // size) for prefix, new in growth)
    assert result["pages_taken"].value.tolist() == [wanted]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": torch.tensor([5])}, "contradict each other"),
        ({"last_slots": torch.tensor([13])}, "contradict each other"),
        ({"free_pages": torch.tensor([], dtype=torch.int64)}, "0 free pages are too few"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        page_allocation(replace(inputs([5], [9], [12], [9]), **changed))
