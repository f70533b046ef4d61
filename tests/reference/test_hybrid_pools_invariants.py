"""Where everything lies: a layout that is right in every rule, and one break of each rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.reference.hybrid_pools import Allocate, Evict, PageLedger, PoolSizes, PoolsSnapshot, Share
from npudiff.reference.hybrid_pools.invariants import violations

PAGE = 4


@pytest.fixture
def ledger():
    """a has pages 0 to 3, of which 0 is b's as well and 1 was evicted; 13 and 6 tokens, window 1."""
    found = PageLedger(PoolSizes(PAGE, 7, 6, 1, 3, True))
    for step in (Allocate(0, 13), Share(0, 1, 1, 2), Evict((0,))):
        assert found.take(step)
    return found


FULL = {0: [5, 2, 7, 3], 1: [5, 6]}  # where the pages of each request lie in the full pool
SLIDING = {5: 4, 7: 3, 3: 1, 6: 2}  # full page to sliding page


def slots(pages, count):
    return torch.tensor([page * PAGE + offset for page in pages for offset in range(PAGE)][:count], dtype=torch.int32)


@pytest.fixture
def snapshot():
    mapping = torch.zeros(8 * PAGE, dtype=torch.int64)
    for full, sliding in SLIDING.items():
        mapping[full * PAGE : (full + 1) * PAGE] = torch.arange(sliding * PAGE, (sliding + 1) * PAGE)
    mapping[3 * PAGE + 1 : 4 * PAGE] = 0  # page 3 has one token, and 6 has two
    mapping[6 * PAGE + 2 : 7 * PAGE] = 0
    return PoolsSnapshot(
        slots={0: slots(FULL[0], 13), 1: slots(FULL[1], 6)},
        mapping=mapping,
        block_table=torch.tensor([[5, 2, 7, 3], [5, 6, 0, 0]], dtype=torch.int32),
        sliding_block_table=torch.tensor([[4, 0, 3, 1], [4, 2, 0, 0]], dtype=torch.int32),
        free_pages=torch.tensor([4, 1]),
        free_sliding_pages=torch.tensor([6, 5]),
    )


def changed(tensor, *places):
    copy = tensor.clone()
    for place, value in places:
        copy[place] = value
    return copy


def test_a_right_layout_breaks_no_rule(ledger, snapshot):
    assert violations(ledger, snapshot) == []


def test_the_order_of_requests_and_what_no_request_sees_do_not_matter(ledger, snapshot):
    other = replace(
        snapshot,
        slots=dict(reversed(snapshot.slots.items())),
        block_table=torch.tensor([[5, 6, 4, 4], [5, 2, 7, 3]]),  # behind the last page of b stands any page
        sliding_block_table=torch.tensor([[4, 2, 5, 6], [4, 0, 3, 1]]),
        mapping=changed(snapshot.mapping, (3 * PAGE + 2, 1 * PAGE + 2)),  # a slot without a token may be mapped
    )
    assert violations(ledger, other) == []


def broken_slots(request, *places):
    return lambda snapshot: replace(
        snapshot, slots={**snapshot.slots, request: changed(snapshot.slots[request], *places)}
    )


def broken(name, *places):
    return lambda snapshot: replace(snapshot, **{name: changed(getattr(snapshot, name), *places)})


def of(name, values):
    return lambda snapshot: replace(snapshot, **{name: torch.tensor(values)})


BREAKS = {
    "a table is flat": (
        of("block_table", [5, 2, 7, 3]),
        "block_table must be integers in 2 dimensions, got torch.int64 [4]",
    ),
    "pages are no integers": (
        of("free_pages", [4.0, 1.0]),
        "free_pages must be integers in 1 dimensions, got torch.float32 [2]",
    ),
    "slots have a dimension too many": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 1: snapshot.slots[1].unsqueeze(0)}),
        "slots of b must be integers in 1 dimensions, got torch.int32 [1, 6]",
    ),
    "the mapping is too short": (
        of("mapping", [0] * 31),
        "mapping has shape [31], and the full pool 32 slots",
    ),
    "a request is missing": (
        lambda snapshot: replace(snapshot, slots={0: snapshot.slots[0]}),
        "live are a b, the snapshot has a",
    ),
    "nobody is there": (lambda snapshot: replace(snapshot, slots={}), "the snapshot has nobody"),
    "a slot is missing": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 1: snapshot.slots[1][:-1]}),
        "b has 6 tokens and 5 slots",
    ),
    "page 0 is used": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 0: slots([5, 2, 7, 0], 13)}),
        "token 12 of a has slot 0, in page 0, which is nobody's",
    ),
    "a page is outside the pool": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 0: slots([5, 2, 7, 8], 13)}),
        "token 12 of a has slot 32, in page 8, which is nobody's",
    ),
    "two tokens share a slot": (broken_slots(0, (1, 20)), "page 0 of a has slots [20, 20, 22, 23]"),
    "a page does not begin at its start": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 1: slots(FULL[1], 7)[[*range(4), 5, 6]]}),
        "page 1 of b has slots [25, 26], which do not fill a page from its start",
    ),
    "a shared page was copied": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 1: slots([4, 6], 6)}),
        "a and b share a page, and have it at 5 and at 4",
    ),
    "a page is shared by chance": (
        lambda snapshot: replace(snapshot, slots={**snapshot.slots, 1: slots([5, 3], 6)}),
        "page 3 of the full pool has tokens of a and others of b",
    ),
    "a page in the window is not mapped": (
        broken("mapping", (slice(5 * PAGE, 6 * PAGE), 0)),
        "page 5 of a and b belongs in the sliding pool, and is mapped to slot 0",
    ),
    "a page is mapped outside the pool": (
        broken("mapping", (3 * PAGE, 7 * PAGE)),
        "page 3 of a belongs in the sliding pool, and is mapped to slot 28",
    ),
    "offsets differ": (
        broken("mapping", (6 * PAGE, 9), (6 * PAGE + 1, 8)),
        "page 6 of b is mapped to [9, 8]: not the same offsets",
    ),
    "one token is mapped elsewhere": (broken("mapping", (5 * PAGE + 2, 7)), "not the same offsets"),
    "a slot without a token is mapped elsewhere": (
        broken("mapping", (3 * PAGE + 2, 7)),
        "page 3 of a is mapped to [4, 0, 7, 0] where it holds no token",
    ),
    "two pages are mapped to one": (
        broken("mapping", (slice(6 * PAGE, 6 * PAGE + 2), torch.tensor([4, 5]))),
        "page 1 of the sliding pool has tokens of a and others of b",
    ),
    "an evicted page is mapped": (
        broken("mapping", (2 * PAGE + 1, 13)),
        "slot 9 of the full pool was evicted of a, and is mapped to slot 13",
    ),
    "a free page is mapped": (
        broken("mapping", (4 * PAGE, 12)),
        "slot 16 of the full pool belongs to nobody, and is mapped to slot 12",
    ),
    "page 0 is mapped": (broken("mapping", (0, 12)), "slot 0 of the full pool belongs to nobody"),
    "a page leaks": (of("free_pages", [4]), "page 1 of the full pool is neither free nor anybody's"),
    "a page of the sliding pool leaks": (
        of("free_sliding_pages", [5]),
        "page 6 of the sliding pool is neither free nor anybody's",
    ),
    "a held page is free": (of("free_pages", [4, 1, 5]), "page 5 of the full pool is free and has tokens of a and b"),
    "a held page of the sliding pool is free": (
        of("free_sliding_pages", [6, 5, 2]),
        "page 2 of the sliding pool is free and has tokens of b",
    ),
    "a page is free twice": (of("free_pages", [4, 1, 4]), "a page of the full pool is free twice: [1, 4, 4]"),
    "page 0 is free": (of("free_pages", [4, 1, 0]), "page 0 is free in the full pool, which has pages 1 to 7"),
    "a page is free that there is not": (of("free_sliding_pages", [6, 5, 7]), "page 7 is free in the sliding pool"),
    "a table is too narrow": (
        of("block_table", [[5, 2, 7], [5, 6, 0]]),
        "block_table has shape [2, 3], expected [2, 4]",
    ),
    "a table is too wide": (
        of("sliding_block_table", [[4, 0, 3, 1, 0], [4, 2, 0, 0, 0]]),
        "sliding_block_table has shape [2, 5], expected [2, 4]",
    ),
    "a table lacks a request": (of("block_table", [[5, 2, 7, 3]]), "block_table has shape [1, 4], expected [2, 4]"),
    "a table names another page": (
        broken("block_table", ((1, 1), 3)),
        "block_table of b is [5, 3, 0, 0], expected [5, 6]",
    ),
    "a table names an evicted page": (
        broken("sliding_block_table", ((0, 1), 2)),
        "sliding_block_table of a is [4, 2, 3, 1], expected [4, 0, 3, 1]",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule_is_broken_by_what_breaks_it(name, ledger, snapshot):
    change, words = BREAKS[name]
    found = violations(ledger, change(snapshot))
    assert any(words in one for one in found), found
    assert len(found) == 1, found
