"""Counts beyond those that a component lists: all of what is legal, and how often it is far beyond."""

from __future__ import annotations

import pytest

from npudiff.draw.counts import FAR_COUNTS, GRID_OCTAVE, PLACES, between, far_values, huge_values
from npudiff.model.constraints import Joined, allows

ALL_PLACES = range(0, PLACES, 61)
ANY = range(1, 2**17 + 1)


def reached(values_at):
    return {value for place in ALL_PLACES for value in values_at(place)}


def test_a_place_is_between_powers_of_two():
    assert [between(10, place) for place in (0, PLACES // 2, PLACES - 1)] == [1024, 1536, 2047]
    assert {between(3, place) for place in range(PLACES)} == set(range(8, 16))


def test_far_counts_are_listed_ones_and_any_other_of_the_same_size():
    values = reached(lambda place: far_values(ANY, place, 0))
    assert set(FAR_COUNTS) <= values
    assert len([value for value in values if 256 <= value < 512]) > 40
    assert max(values) < 1024


def test_far_counts_of_an_axis_with_steps_are_multiples():
    legal = range(16, 4097, 16)
    values = far_values(legal, 77, 0)
    assert {80, 112, 144, 1040} <= set(values)
    assert all(allows(legal, value) for value in values)


@pytest.mark.parametrize("legal", [range(1, 41), range(1, 1000), ("a", "b"), (2, 3, 5)])
def test_no_value_is_outside_of_what_is_legal(legal):
    assert all(value in legal for value in far_values(legal, 5, 7))
    assert huge_values(legal, 5) == []


def test_most_huge_counts_are_beyond_a_grid_and_the_others_of_every_size():
    values = huge_values(ANY, 1000)
    beyond = [value for value in values if value > 65_535]
    assert len(beyond) / len(values) == 0.75
    assert {2**GRID_OCTAVE, 2**GRID_OCTAVE + 1} < set(beyond)
    assert {1025, 2049, 4097, 8193, 16_385, 32_769} <= set(values)
    assert max(reached(lambda place: huge_values(ANY, place))) < 2**GRID_OCTAVE + 2**12


def test_huge_counts_end_where_the_axis_ends():
    assert set(huge_values(range(1, 4097), 0)) == {1024, 1025, 2048, 2049, 4096}


def test_head_dims_are_those_of_models_and_any_other():
    legal = Joined((range(1, 2**16 + 1), range(1, 2**16 + 1)), short=True)
    texts = {text for place in ALL_PLACES for text in far_values(legal, place, PLACES - 1 - place)}
    assert {"72", "224", "512"} <= texts
    assert all(text in legal for text in texts)
    pairs = {tuple(map(int, text.split("/"))) for text in texts if "/" in text}
    assert len(pairs) > 300
    assert {first > second for first, second in pairs} == {True, False}
    assert len([text for text in texts if "/" not in text and int(text) % 8]) > 60


def test_joined_sizes_are_each_in_their_own_range():
    legal = Joined((range(1, 2**16 + 1), range(2, 2**16 + 1, 2), range(16, 2**16 + 1, 16)))
    texts = far_values(legal, 99, 3)
    assert texts
    assert all(text in legal for text in texts)
    assert far_values(Joined((range(600, 700),)), 0, 0) == []
