from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.reference.cache_gather import CacheGatherInputs, cache_gather, token_slots
from npudiff.reference.cache_layout import LAYOUTS, CacheLayout
from npudiff.reference.paged_cache import PagedCacheInputs, paged_cache

LAWS = settings(max_examples=60, derandomize=True, database=None, deadline=None)


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def numbered(*shape, dtype=torch.float16):
    return (torch.arange(torch.Size(shape).numel()) % 1999 + 1).reshape(shape).to(dtype)


def inputs(lengths, starts=None, layout="PA_BSND", table=((3, 1, 2), (2, 4, 0)), rows=None, dims=(32, 16)):
    """Pages of 4 tokens, 5 of them, 2 heads."""
    rows = sum(lengths) if rows is None else rows
    caches = [numbered(*CacheLayout(layout, 5, 4, 2, dim, torch.float16).shape) for dim in dims]
    packed = [torch.full((rows, 2, dim), -1.0, dtype=torch.float16) for dim in dims]
    starts = None if starts is None else int32(starts)
    return CacheGatherInputs(*caches, int32(table), int32(lengths), starts, *packed, 4, layout)


@pytest.mark.parametrize(
    ("lengths", "starts", "slots"),
    [
        ([6, 0], None, [12, 13, 14, 15, 4, 5]),
        ([1, 5], None, [12, 8, 9, 10, 11, 16]),
        ([4, 4], [4, 0], [4, 5, 6, 7, 8, 9, 10, 11]),
        ([3, 1], [2, 7], [14, 15, 4, 19]),
        ([0, 0], [9, 3], []),
    ],
)
def test_slots_worked_by_hand(lengths, starts, slots):
    """Request 0 has pages 3, 1, 2, that is slots 12 to 15, 4 to 7, 8 to 11; request 1 has pages 2, 4, 0."""
    assert token_slots(inputs(lengths, starts)).tolist() == slots


def test_tokens_are_packed_request_after_request():
    given = inputs([5, 2], rows=9)
    right = cache_gather(given)
    for name, cache in (("key", given.key_cache), ("value", given.value_cache)):
        packed = right[name].value
        assert torch.equal(packed[:4], cache[3])
        assert torch.equal(packed[4], cache[1, 0])
        assert torch.equal(packed[5:7], cache[2, :2])
        assert bool((packed[7:] == -1).all())
        assert not right[name].bound.any()
    assert bool((given.key == -1).all())


def test_all_requests_can_be_empty():
    right = cache_gather(inputs([0, 0]))
    assert right["key"].value.shape == (0, 2, 32)
    assert right["value"].value.shape == (0, 2, 16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_written_is_read(layout):
    """By the reference of the other direction: tokens go to their slots, and come back in order."""
    given = inputs([7, 5], [2, 4], layout)
    slots = token_slots(given)
    rows = [numbered(len(slots), 2, dim) * 2 for dim in (32, 16)]
    written = paged_cache(PagedCacheInputs(*rows, given.key_cache, given.value_cache, slots, 4, layout))
    caches = {"key_cache": written["key_cache"].value, "value_cache": written["value_cache"].value}
    right = cache_gather(replace(given, **caches))
    assert torch.equal(right["key"].value, rows[0])
    assert torch.equal(right["value"].value, rows[1])


@LAWS
@given(st.sampled_from(LAYOUTS), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=2, max_size=2))
def test_it_is_what_torch_makes_by_views_and_a_loop(layout, stretches):
    lengths, starts = zip(*stretches, strict=True)
    given = inputs(list(lengths), list(starts), layout)
    views = {
        "PA_BSND": lambda cache, dim: cache,
        "PA_BNSD": lambda cache, dim: cache.permute(0, 2, 1, 3),
        "PA_NZ": lambda cache, dim: cache.permute(0, 2, 1, 3).reshape(5, 4, 2, dim),
    }
    right = cache_gather(given)
    for name, cache, dim in (("key", given.key_cache, 32), ("value", given.value_cache, 16)):
        pages = views[layout](cache, dim)
        places = [
            (int(given.block_table[request, token // 4]), token % 4)
            for request, (length, start) in enumerate(stretches)
            for token in range(start, start + length)
        ]
        assert right[name].value.shape == (len(places), 2, dim)
        for row, (page, offset) in zip(right[name].value, places, strict=True):
            assert torch.equal(row, pages[page, offset])


def test_entries_that_no_token_needs_can_hold_anything():
    given = inputs([3, 4], [0, 4], table=((3, -1, 99), (-7, 4, -1)))
    assert token_slots(given).tolist() == [12, 13, 14, 16, 17, 18, 19]
    cache_gather(given)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"lengths": int32([13, 0])}, IndexError, "token 12 lies beyond 3 pages of 4"),
        ({"starts": int32([0, 12])}, IndexError, "token 12 lies beyond 3 pages of 4"),
        ({"block_table": int32([[5, 0, 0], [0, 0, 0]])}, IndexError, "outside the cache of 5"),
        ({"block_table": int32([[-1, 0, 0], [0, 0, 0]])}, IndexError, "outside the cache of 5"),
        ({"lengths": int32([-1, 2])}, ValueError, "must not be negative, got -1"),
        ({"starts": int32([-4, 0])}, ValueError, "must not be negative, got 1 and -4"),
        ({"lengths": int32([2, 1])}, ValueError, "3 tokens do not fit into 2 rows"),
        ({"layout": "PA_BNSD"}, ValueError, "a PA_BNSD cache of torch.float16 must be \\(5, 2, 4, 32\\)"),
        ({"page_size": 3}, ValueError, "must be \\(5, 3, 2, 32\\)"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        cache_gather(replace(inputs([1, 1]), **changed))


def test_a_copy_for_a_device_can_be_written_without_a_trace():
    given = inputs([2, 1], [0, 4])
    there = given.to("cpu")
    there.key.fill_(7)
    there.value.fill_(7)
    assert bool((given.key == -1).all())
    assert bool((given.value == -1).all())
    assert inputs([2, 1]).to("cpu").starts is None
