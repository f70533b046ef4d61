from __future__ import annotations

import pytest

from npudiff.draw import Chooser, within


def chooser(*indices):
    drawn = iter(indices)
    return Chooser(lambda strategy: next(drawn))


def test_the_smallest_draw_is_the_first_option():
    assert chooser(0).pick(("a", "b", "c")) == "a"


def test_every_option_can_be_drawn():
    choose = chooser(*range(6))
    assert [choose.pick("abc") for _ in range(6)] == list("abcabc")


def test_a_choice_among_one_costs_one_draw_so_that_the_sequence_stays_aligned():
    drawn = []
    Chooser(lambda strategy: drawn.append(strategy) or 0).pick(("only",))
    assert len(drawn) == 1


def test_every_choice_draws_from_the_same_strategy():
    drawn = []
    choose = Chooser(lambda strategy: drawn.append(strategy) or 0)
    choose.pick("ab")
    choose.pick(range(1000))
    assert drawn[0] is drawn[1]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, [1, 2, 3]),
        (range(2, 9), [2, 3]),
        ((3, 1), [1, 3]),
        (range(5, 9), [5, 6, 7, 8]),
        ((7, None), [7, None]),
    ],
)
def test_defaults_that_are_allowed_come_first_else_all_that_is_allowed(allowed, expected):
    assert list(within((1, 2, 3), allowed)) == expected


def test_a_huge_range_without_defaults_is_drawn_from_without_being_listed():
    assert chooser(5).value({"a": range(100, 10**15)}, "a", (1, 2)) == 105
    assert within((1,), range(100, 10**15)) == range(100, 10**15)
