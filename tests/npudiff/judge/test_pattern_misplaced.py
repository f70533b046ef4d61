from __future__ import annotations

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge import pattern
from npudiff.judge.compare import compare
from npudiff.judge.pattern import explain_misplaced
from npudiff.properties._shared.moved_data import random_bits
from npudiff.reference.bounds import Expected, exactly

PLACES = {"page": torch.arange(4)[:, None, None], "offset": torch.arange(8)[None, :, None], "dim": torch.arange(16)}


def data(name, dtype=torch.bfloat16):
    return random_bits(Stream(1, name), (4, 8, 16), dtype)


def told(right, actual, before=None):
    (output,) = compare({"y": exactly(right)}, {"y": actual}).outputs
    return explain_misplaced(output, PLACES, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float32])
def test_a_row_in_anothers_place_is_told_by_what_differs(dtype):
    right = data("right", dtype)
    actual = right.clone()
    actual[2, 5] = right[1, 3]
    assert told(right, actual) == ["16 hold what belongs elsewhere: page 2, offset 5 has that of page 1, offset 3"]
    actual = right.clone()
    actual[3, 7, 8:] = right[3, 7, :8]
    assert told(right, actual) == ["8 hold what belongs elsewhere: dim 8 has that of dim 0"]


def test_what_was_not_written_is_told():
    right, before = data("right"), data("before")
    actual = right.clone()
    actual[1, 2] = before[1, 2]
    actual[3, 0] = right[0, 0]
    lines = ["16 hold what was there before", "16 hold what belongs elsewhere: page 3 has that of page 0"]
    assert told(right, actual, before) == lines
    assert told(right, actual, before.float()) == lines[1:]


def test_nothing_is_told_of_what_is_right_or_from_nowhere():
    right, other = data("right"), data("other")
    assert told(right, right.clone(), other) == []
    actual = right.clone()
    actual[2] = other[2]
    assert told(right, actual) == []
    assert told(right, right[:3].clone()) == []


def test_an_element_that_agrees_by_chance_is_not_told():
    right, before = data("right"), data("before")
    actual = data("other")
    actual[0, 0, 0] = before[0, 0, 0]
    assert told(right, actual, before) == []


def test_what_stands_in_two_places_belongs_to_neither():
    right = data("right")
    right[1] = right[0]
    actual = right.clone()
    actual[3] = right[0]
    assert told(right, actual) == []


def test_of_what_is_computed_only_what_was_there_before_is_told():
    before = data("before")
    right = Expected(before.double() + 1, torch.full((4, 8, 16), 1e-3, dtype=torch.float64), torch.bfloat16)
    (output,) = compare({"y": right}, {"y": before}).outputs
    wrong = int(output.wrong.sum())
    assert explain_misplaced(output, PLACES, before) == [f"{wrong} hold what was there before"]


def test_a_column_whose_stride_is_not_its_own():
    column = torch.randn(1, 65, dtype=torch.float64).t()
    assert column.is_contiguous()
    moved = column.clone()
    moved[3] = column[60]
    (output,) = compare({"y": exactly(column)}, {"y": moved}).outputs
    told = explain_misplaced(output, {"row": torch.arange(65)[:, None]})
    assert told == ["1 hold what belongs elsewhere: row 3 has that of row 60"]


def test_of_a_hundred_wrong_elements_one_that_is_as_before_is_told_and_of_more_it_is_not():
    right, before = data("right", torch.int32), data("before", torch.int32)

    def with_one_kept(wrong):
        actual = right.clone().flatten()
        actual[:wrong] = data("other", torch.int32).flatten()[:wrong]
        actual[0] = before.flatten()[0]
        return told(right, actual.view(right.shape), before)

    assert with_one_kept(99) == with_one_kept(100) == ["1 hold what was there before"]
    assert with_one_kept(101) == []


def test_the_first_and_the_last_row_are_found_in_each_others_place():
    right = torch.arange(512).view(4, 8, 16)  # in order: their words are the smallest and the largest
    for there, home in (((0, 0), (3, 7)), ((3, 7), (0, 0))):
        actual = right.clone()
        actual[2, 5] = right[home]
        (line,) = told(right, actual)
        assert line.endswith(f"page 2, offset 5 has that of page {home[0]}, offset {home[1]}")
        assert there != home


def test_rows_that_are_no_whole_words_and_tensors_that_are_too_large_are_not_searched(monkeypatch):
    right = torch.arange(3 * 7, dtype=torch.int32).view(3, 7)
    actual = right.clone()
    actual[0] = right[1]
    (output,) = compare({"y": exactly(right)}, {"y": actual}).outputs
    assert explain_misplaced(output, {"row": torch.arange(3)[:, None]}) == []
    right, actual = right[:, :6].contiguous(), actual[:, :6].contiguous()
    (output,) = compare({"y": exactly(right)}, {"y": actual}).outputs
    at_limit = ["6 hold what belongs elsewhere: row 0 has that of row 1"]
    monkeypatch.setattr(pattern, "_LARGEST", right.numel() * 4)
    assert explain_misplaced(output, {"row": torch.arange(3)[:, None]}) == at_limit
    monkeypatch.setattr(pattern, "_LARGEST", right.numel() * 4 - 1)
    assert explain_misplaced(output, {"row": torch.arange(3)[:, None]}) == []


@pytest.mark.parametrize(("home", "place"), [((0, 0, 0), "page 0, offset 0, dim 0"), ((3, 7, 15), "page 3, offset 7")])
def test_a_single_word_is_found_though_it_is_the_smallest_or_the_largest(home, place):
    right = torch.arange(512).view(4, 8, 16)
    actual = right.clone()
    actual[1, 2, 9] = right[home]
    (line,) = told(right, actual)
    assert line.startswith("1 hold what belongs elsewhere: page 1, offset 2, dim 9 has that of ")
    assert place in line
