from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.reference.bounds import exactly
from npudiff.reference.cache_layout import LAYOUTS, CacheLayout
from npudiff.reference.paged_cache import PagedCacheInputs, paged_cache, written


def numbered(*shape, start=0):
    return torch.arange(start, start + int(torch.Size(shape).numel()), dtype=torch.int32).to(torch.bfloat16).view(shape)


def inputs(layout="PA_BSND", slots=(4, 9), dims=(32, 16), dtype=torch.bfloat16):
    key, value = (numbered(len(slots), 2, dim, start=1000).to(dtype) for dim in dims)
    caches = [torch.zeros(CacheLayout(layout, 3, 4, 2, dim, dtype).shape, dtype=dtype) for dim in dims]
    return PagedCacheInputs(key, value, *caches, torch.tensor(slots, dtype=torch.int32), 4, layout)


def test_tokens_stand_at_their_slots_and_nothing_else_changes():
    given = inputs()
    cache = paged_cache(given)["key_cache"].value
    assert torch.equal(cache[1, 0], given.key[0])
    assert torch.equal(cache[2, 1], given.key[1])
    assert int(cache.count_nonzero()) == given.key.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_tokens(layout):
    given = inputs(layout)
    written = paged_cache(given)
    for name, rows in (("key_cache", given.key), ("value_cache", given.value)):
        place = CacheLayout(layout, 3, 4, 2, rows.shape[2], rows.dtype)
        flat = written[name].value.reshape(-1)
        assert torch.equal(flat[place.addresses(given.slots.to(torch.int64))], rows)
        assert written[name].value.shape == place.shape
        assert not written[name].bound.any()


def test_a_skipped_token_is_written_nowhere_and_inputs_stay_as_they_are():
    given = inputs(slots=(-1, 9))
    written = paged_cache(given)
    assert torch.equal(written["key_cache"].value[2, 1], given.key[1])
    assert int(written["key_cache"].value.count_nonzero()) == given.key[1].numel()
    assert not given.key_cache.any()


def test_only_slot_0_is_not_specified_and_only_if_padded_tokens_go_there():
    bound = paged_cache(inputs(slots=(0, 0)))["key_cache"].bound
    assert bool(bound[0, 0].isposinf().all())
    assert int(bound.isposinf().sum()) == bound[0, 0].numel()
    assert not paged_cache(inputs(slots=(4, 9)))["key_cache"].bound.any()
    given = inputs(slots=(0, 9))
    assert int(paged_cache(given)["key_cache"].bound.isposinf().sum()) == bound[0, 0].numel()
    assert not written(given, given.key_cache, exactly(given.key), dummy=False).bound.any()


def test_numbers_that_are_not_numbers_are_moved_too():
    given = inputs(layout="PA_NZ")
    given.key[0, 0, 0] = torch.nan
    assert int(paged_cache(given)["key_cache"].value.isnan().sum()) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"slots": torch.tensor([4, 12])}, "each -1 or in 0..11"),
        ({"slots": torch.tensor([4, -2])}, "each -1 or in 0..11"),
        ({"slots": torch.tensor([4])}, "slots must be \\[2\\]"),
        ({"layout": "PA_NZ"}, "a PA_NZ cache of torch.bfloat16 must be \\(3, 4, 4, 16\\)"),
        ({"page_size": 5}, "must be \\(3, 5, 2, 32\\)"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        paged_cache(replace(inputs(), **changed))


def test_a_copy_for_a_device_can_be_written_without_a_trace():
    given = inputs()
    there = given.to("cpu")
    there.key_cache.fill_(7)
    assert not given.key_cache.any()
