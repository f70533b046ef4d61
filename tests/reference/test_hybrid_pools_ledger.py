"""The account of the pages, against histories that were worked out by hand."""

from __future__ import annotations

import copy

import pytest

from npudiff.reference.hybrid_pools import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    PageLedger,
    PoolSizes,
    Preempt,
    Readmit,
    Share,
    in_words,
    request_name,
)


def ledger(*steps, page_size=4, full=8, sliding=8, window=3, requests=4, sharing=True):
    found = PageLedger(PoolSizes(page_size, full, sliding, window, requests, sharing))
    for step in steps:
        assert found.reason_against(step) is None, in_words(step)
        assert found.take(step), in_words(step)
    return found


def shape(found):
    """Tables with pages named in the order in which they are first seen."""
    names = {}
    return {request: [names.setdefault(page, len(names)) for page in table] for request, table in found.tables.items()}


def test_tokens_fill_pages_from_their_start():
    found = ledger(Allocate(0, 5), Extend(0, 3), Decode((0,)), Allocate(1, 1))
    assert found.lengths == {0: 9, 1: 1}
    assert shape(found) == {0: [0, 1, 2], 1: [3]}
    assert (found.free_pages, found.free_sliding_pages) == (4, 4)


@pytest.mark.parametrize(
    ("step", "pages"),
    [
        (Allocate(1, 4), 1),
        (Allocate(1, 5), 2),
        (Extend(0, 3), 0),
        (Extend(0, 4), 1),
        (Decode((0,)), 0),
        (Share(0, 1, 1, 5), 2),
        (Fork(0, 1), 1),
        (Evict((0,)), 0),
        (Free(0), 0),
        (Preempt(0), 0),
    ],
    ids=in_words,
)
def test_what_a_step_needs_of_five_tokens_in_pages_of_four(step, pages):
    assert ledger(Allocate(0, 5)).pages_needed(step) == pages


def test_a_decode_of_a_batch_needs_a_page_for_each_full_one():
    assert ledger(Allocate(0, 4), Allocate(1, 8), Allocate(2, 3)).pages_needed(Decode((0, 1, 2))) == 2


def test_a_fork_of_whole_pages_needs_none():
    assert ledger(Allocate(0, 8)).pages_needed(Fork(0, 1)) == 0


@pytest.mark.parametrize(
    ("window", "sharing", "lengths"),
    [
        (3, False, {6: 0, 7: 1, 10: 1, 11: 2}),  # a page goes when its last token is 3 behind the newest
        (4, False, {7: 0, 8: 1, 12: 2}),
        (1, False, {4: 0, 5: 1}),
        (3, True, {7: 0, 8: 1, 11: 1, 12: 2}),  # 3 is rounded up to a page of 4
        (5, True, {11: 0, 12: 1}),  # 5 to two pages
    ],
)
def test_what_is_left_of_the_window_is_given_up_in_whole_pages(window, sharing, lengths):
    for length, pages in lengths.items():
        found = ledger(Allocate(0, length), Evict((0,)), window=window, sharing=sharing)
        assert len(found.evicted) == pages, length
        assert (found.free_pages, found.free_sliding_pages) == (8 - -(-length // 4), 8 - -(-length // 4) + pages)


def test_after_an_eviction_with_sharing_the_longest_prefix_stays_usable():
    for length in range(1, 20):
        found = ledger(Allocate(0, length), Evict((0,)), window=3)
        assert length < 4 or found.can_share(0, length // 4), length


def test_a_prefix_whose_window_is_gone_cannot_be_shared():
    found = ledger(Allocate(0, 16), Evict((0,)), window=3)
    assert [found.can_share(0, pages) for pages in (0, 1, 2, 3, 4, 5)] == [False, False, False, False, True, False]
    assert ledger(Allocate(0, 16), Evict((0,)), window=1).can_share(0, 1)  # its first own token sees only itself


def test_a_shared_page_is_given_up_only_when_one_request_has_it():
    found = ledger(Allocate(0, 12), Share(0, 1, 1, 1))
    assert shape(found) == {0: [0, 1, 2], 1: [0, 3]}
    assert (found.outside(0), found.leaving(0)) == (found.tables[0][:2], found.tables[0][1:2])
    found.take(Evict((0,)))
    assert found.evicted == {found.tables[0][1]}
    found.take(Free(1))
    found.take(Evict((0,)))
    assert found.evicted == set(found.tables[0][:2])


def test_a_fork_shares_whole_pages_and_has_a_partial_one_of_its_own():
    found = ledger(Allocate(0, 6), Fork(0, 1), Decode((0, 1)))
    assert shape(found) == {0: [0, 1], 1: [0, 2]}
    assert found.lengths == {0: 7, 1: 7}
    assert shape(ledger(Allocate(0, 8), Fork(0, 1), Decode((0, 1)))) == {0: [0, 1, 2], 1: [0, 1, 3]}


def test_pages_are_free_when_the_last_request_that_has_them_is_gone():
    found = ledger(Allocate(0, 8), Fork(0, 1), Free(0))
    assert found.free_pages == 6
    found.take(Free(1))
    assert (found.free_pages, found.free_sliding_pages) == (8, 8)
    assert not found.holders


def test_an_evicted_page_that_is_free_is_free_in_both_pools():
    found = ledger(Allocate(0, 12), Evict((0,)), Free(0), Allocate(0, 32))
    assert (found.free_pages, found.free_sliding_pages) == (0, 0)


def test_a_preempted_request_comes_back_with_all_its_tokens():
    found = ledger(Allocate(0, 9), Preempt(0))
    assert (found.tables, found.waiting, found.free_pages) == ({}, {0: 9}, 8)
    found.take(Readmit(0))
    assert (found.lengths, found.waiting, found.free_pages) == ({0: 9}, {}, 5)


@pytest.mark.parametrize(
    "step",
    [Allocate(1, 5), Extend(0, 4), Decode((0, 2)), Share(2, 1, 1, 5), Fork(0, 1), Readmit(3)],
    ids=in_words,
)
@pytest.mark.parametrize("pools", [(5, 9), (9, 5)])
def test_a_step_for_which_one_pool_has_too_few_pages_changes_nothing(step, pools):
    steps = (Allocate(3, 5), Preempt(3), Allocate(0, 5), Allocate(2, 8))
    found = ledger(*steps, full=pools[0], sliding=pools[1])
    found.take(Extend(0, 3 if isinstance(step, Extend | Decode) else 2))
    while found.room > (0 if isinstance(step, Extend | Fork) else 1):
        found.take(Allocate(4 + found.room, 1))
    before = copy.deepcopy(vars(found))
    assert not found.fits(step)
    assert not found.take(step)
    assert vars(found) == before


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Allocate(0, 1), "is there already"),
        (Allocate(3, 1), "is there already"),
        (Allocate(-1, 1), "is no request"),
        (Allocate(4, 0), "at least one token"),
        (Extend(1, 1), "not live: b"),
        (Extend(0, 0), "at least one token"),
        (Decode((0, 0)), "twice"),
        (Decode(()), "no request"),
        (Evict((0, 3)), "not live: d"),
        (Free(3), "not live: d"),
        (Preempt(1), "not live: b"),
        (Readmit(0), "a was not preempted"),
        (Share(1, 4, 1, 1), "not live: b"),
        (Share(0, 3, 1, 1), "is there already"),
        (Share(0, 4, 2, 1), "no 2 whole pages"),
        (Share(0, 4, 1, 0), "at least one token"),
        (Fork(0, 2), "is there already"),
    ],
    ids=str,
)
def test_steps_that_make_no_sense(step, reason):
    found = ledger(Allocate(3, 2), Preempt(3), Allocate(0, 7), Allocate(2, 1))
    assert reason in found.reason_against(step)


def test_nobody_is_added_beyond_the_most_that_may_live():
    found = ledger(Allocate(0, 4), Preempt(0), Allocate(1, 4), requests=1)
    for step in (Allocate(2, 1), Readmit(0), Share(1, 2, 1, 1), Fork(1, 2)):
        assert "1 requests are live already" in found.reason_against(step)


def test_without_prefix_sharing_nothing_is_shared():
    found = ledger(Allocate(0, 4), sharing=False)
    for step in (Share(0, 1, 1, 1), Fork(0, 1)):
        assert found.reason_against(step) == "prefixes are not shared"


def test_steps_in_words():
    steps = (Allocate(0, 5), Decode((0, 27)), Share(1, 2, 1, 3), Share(1, 2, 2, 3), Fork(2, 0), Readmit(25))
    assert [in_words(step) for step in steps] == [
        "allocate a 5",
        "decode a b1",
        "share 1 page of b with c 3",
        "share 2 pages of b with c 3",
        "fork c a",
        "readmit z",
    ]
    assert request_name(26) == "a1"
