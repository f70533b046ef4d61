"""Orders of slots and pages as an allocator gives them: what each is, and that every token has a slot of its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest

from npudiff.properties._shared.slots import PAGE_ORDERS, SLOT_ORDERS, page_names, slots_of


@dataclass(frozen=True)
class Some:
    slot_order: str
    page_size: int = 4
    seed: int = 7


def steps(slots):
    return [later - earlier for earlier, later in pairwise(slots)]


@pytest.mark.parametrize("order", SLOT_ORDERS)
@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (4, 1), (2, 1), (6, 2), (8, 2), (9, 40), (159, 40)])
def test_every_token_has_a_slot_of_its_own_behind_the_dummy_page(order, tokens, pages):
    for seed in range(20):
        slots = slots_of(Some(order, seed=seed), tokens, pages)
        assert len(set(slots)) == len(slots) == tokens
        assert min(slots) >= 4
        assert max(slots) < 4 * (1 + pages)


def test_a_run_goes_on_by_one_from_any_slot():
    starts = set()
    for seed in range(40):
        slots = slots_of(Some("run", seed=seed), 9, 8)
        assert set(steps(slots)) == {1}
        starts.add(slots[0] % 4)
    assert starts == {0, 1, 2, 3}


def test_a_stray_is_the_only_one_that_is_elsewhere():
    for seed in range(40):
        slots = slots_of(Some("run with a stray", seed=seed), 9, 8)
        strays = [place for place in range(9) if all(slots[place] - place != slots[other] - other
                                                     for other in range(9) if other != place)]  # fmt: skip
        assert len(strays) == 1
    assert steps(slots_of(Some("run with a stray"), 8, 2)).count(1) < 7  # where none is free


def test_whole_pages_are_filled_in_order_and_are_in_none():
    slots = slots_of(Some("pages"), 18, 8)
    pages = [slots[place] // 4 for place in range(0, 18, 4)]
    assert slots == [4 * page + offset for page in pages for offset in range(4)][:18]
    assert pages != sorted(pages)


def test_slots_with_gaps_rise_and_are_no_run():
    slots = slots_of(Some("gaps"), 12, 8)
    assert min(steps(slots)) > 0
    assert max(steps(slots)) > 1


def test_pages_follow_each_other_or_have_no_order():
    assert page_names("pages", 3, 6, PAGE_ORDERS[1]) == [1, 2, 3, 4, 5]
    scattered = page_names("pages", 3, 40, PAGE_ORDERS[0])
    assert sorted(scattered) == list(range(1, 40))
    assert scattered != sorted(scattered)
