"""Looking for the smallest failing case: it is found where it is known, and the next one where it is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exhaustive import Space, cases_up_to, check_rising, smallest_failing
from npudiff.model.constraints import Constraints

KNOWN, LARGEST = 7, 40


@pytest.fixture
def space(toy):
    return Space(
        lambda count, kind: toy.Case(tuple(range(count)), kind), {"kind": ("plain", "odd")}, {"count": range(1, 101)}
    )


@pytest.fixture
def look(toy, space):
    def search(function, at_most=LARGEST, supports=None, without=lambda case: False, **changes):
        subject = toy.job(function, supports=supports, **changes).subject
        return smallest_failing(subject.component, subject.implementation, subject.target, space, at_most, without)

    return search


def wrong_where(shows):
    """Double, but for the last number where a bug shows."""

    def function(inputs, target):
        y = inputs.x * 2
        if shows(inputs):
            y[-1] += 1
        return y

    return function


KNOWN_BUG = wrong_where(lambda inputs: len(inputs.x) >= KNOWN and inputs.kind == "odd")


def test_it_is_found_where_it_is_known_after_every_smaller_one(look):
    found = look(KNOWN_BUG)
    assert (found.size, found.case.kind) == (KNOWN, "odd")
    assert found.tried == 2 * (KNOWN - 1) + 2  # of each size both kinds, the plain one first


def test_the_next_one_is_found_where_it_is_left_out(look):
    found = look(KNOWN_BUG, without=lambda case: len(case.numbers) == KNOWN)
    assert found.size == KNOWN + 1


def test_nothing_is_found_below(look):
    assert look(KNOWN_BUG, at_most=KNOWN - 1) is None
    assert look(KNOWN_BUG, at_most=KNOWN).size == KNOWN


@pytest.mark.parametrize("known", [1, 2, 4, 5, 6, 10, 11, 20, 21, 40])
def test_no_level_of_sizes_is_left_out(look, known):
    assert look(wrong_where(lambda inputs: len(inputs.x) == known)).size == known


def test_an_exception_is_a_failure_too(look):
    def raises(inputs, target):
        raise RuntimeError("no")

    assert look(raises).size == 1


def test_what_is_not_legal_or_not_supported_is_not_run(look):
    def refuse(case):
        if len(case.numbers) <= KNOWN:
            raise ValueError("too few")

    assert look(KNOWN_BUG, check_case=refuse).size == KNOWN + 1
    assert look(KNOWN_BUG, supports={"kind": ("plain",)}) is None
    assert look(KNOWN_BUG, supports={"count": range(12, 101)}).size == 12


def test_a_field_that_makes_cases_smaller_is_refused(toy, space):
    falling = replace(space, rising={"count": range(100, 0, -1)})
    with pytest.raises(AssertionError, match="count"):
        list(cases_up_to(toy.component, falling, 200, Constraints()))
    with pytest.raises(AssertionError, match="count"):
        check_rising(toy.component, falling, samples=3)
    check_rising(toy.component, space, samples=3)
