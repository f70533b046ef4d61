from __future__ import annotations

import math

import torch

from npudiff.judge.compare import compare
from npudiff.judge.pattern import NOWHERE, coordinate_text, describe_pattern, worst_element, worst_gain
from npudiff.model.component import OutputComparison
from npudiff.reference.bounds import Expected, exactly

ROW = torch.arange(6)[:, None]
COLUMN = torch.arange(4)[None, :]
PLACES = {"row": ROW, "column": COLUMN}


def wrong_where(mask, places=PLACES):
    right = torch.zeros(mask.shape)
    (output,) = compare({"y": exactly(right)}, {"y": right + mask.float()}).outputs
    return describe_pattern(output, places)


def nothing():
    return torch.zeros(6, 4, dtype=torch.bool)


def test_the_worst_element_is_located_in_the_components_own_coordinates():
    value = torch.arange(24, dtype=torch.float64).view(6, 4)
    actual = value.float()
    actual[2, 3] += 1
    actual[4, 1] += 3
    expected = Expected(value, torch.full((6, 4), 0.5, dtype=torch.float64), torch.float32)
    (output,) = compare({"y": expected}, {"y": actual}).outputs
    place = worst_element(output, {"row": ROW, "column": COLUMN, "ten rows": ROW * 10})
    assert place == {"row": 4, "column": 1, "ten rows": 40, "actual": 20.0, "expected": 17.0, "bound": 0.5}


def test_the_worst_element_is_the_largest_ratio_and_not_the_largest_error():
    expected = Expected(torch.zeros(3), torch.tensor([10.0, 0.1, 1.0], dtype=torch.float64), torch.float32)
    (output,) = compare({"y": expected}, {"y": torch.tensor([5.0, 1.0, 2.0])}).outputs
    assert worst_element(output, {"place": torch.arange(3)})["place"] == 1


def test_nothing_is_located_in_what_was_not_compared_or_is_empty():
    assert worst_element(OutputComparison("y", "shape [1], expected [2]"), PLACES) == {}
    (empty,) = compare({"y": exactly(torch.zeros(0, 4))}, {"y": torch.zeros(0, 4)}).outputs
    assert worst_element(empty, PLACES) == {}


def test_nothing_is_said_when_all_is_well():
    assert wrong_where(nothing()) == []


def test_a_coordinate_that_does_not_separate_is_not_named():
    mask = nothing()
    mask[2] = True
    assert wrong_where(mask) == ["4 of 24 elements are wrong", "only at row 2"]


def test_a_few_values_are_listed_and_many_adjacent_ones_are_a_range():
    mask = nothing()
    mask[[1, 2, 5]] = True
    assert wrong_where(mask)[1] == "only at row 1, 2, 5"
    mask[:5] = True
    mask[5] = False
    assert wrong_where(mask)[1] == "only at row 0 to 4"


def test_many_scattered_values_are_counted():
    places = {"row": torch.arange(12)}
    mask = torch.arange(12) % 2 == 0
    assert wrong_where(mask, places) == ["6 of 12 elements are wrong", "at 6 of 12 values of row"]


def test_every_coordinate_that_separates_is_named():
    mask = nothing()
    mask[3, 1] = True
    assert wrong_where(mask) == ["1 of 24 elements are wrong", "only at row 3", "only at column 1"]


def test_everything_wrong_separates_nothing():
    assert wrong_where(~nothing()) == ["24 of 24 elements are wrong"]


def test_padding_that_is_right_does_not_separate():
    places = {"request": torch.tensor([0, 0, 1, NOWHERE]), "row": torch.arange(4)}
    mask = torch.tensor([True, True, True, False])
    assert wrong_where(mask, places) == ["3 of 4 elements are wrong", "only at row 0, 1, 2"]
    assert wrong_where(~mask, places)[1] == "only at request none"


def test_values_that_became_nan_or_infinite_are_counted():
    right = torch.zeros(5)
    actual = torch.tensor([0.0, math.nan, math.inf, 1.0, 0.0])
    (output,) = compare({"y": exactly(right)}, {"y": actual}).outputs
    assert describe_pattern(output, {})[-1] == "2 of them are NaN or infinite"
    (output,) = compare({"y": exactly(right)}, {"y": torch.ones(5)}).outputs
    assert describe_pattern(output, {}) == ["5 of 5 elements are wrong"]


def test_the_row_with_the_worst_gain_is_located():
    value = torch.ones(2, 3, 4, dtype=torch.float64)
    expected = Expected(value, 0.5 * value, torch.float32, torch.full((2, 3), 0.01, dtype=torch.float64))
    actual = value.float()
    actual[1, 2] *= 0.75
    actual[0, 1] *= 1.125
    (output,) = compare({"y": expected}, {"y": actual}).outputs
    places = {"token": torch.arange(2)[:, None, None], "head": torch.arange(3)[:, None], "dim": torch.arange(4)}
    places = {name: values.reshape((1,) * (3 - values.dim()) + values.shape) for name, values in places.items()}
    assert worst_gain(output, places) == {"token": 1, "head": 2, "error": -0.25, "most": 0.01, "wrong": 2, "rows": 6}
    assert worst_gain(OutputComparison("y"), places) == {}


def column_of(wrong, count):
    """What is said of one column of places, of which some are wrong."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[list(wrong)] = True
    return wrong_where(mask, {"row": torch.arange(count)})[1:]


def test_four_values_are_listed_and_five_are_not():
    assert column_of([1, 3, 5, 7], 9) == ["only at row 1, 3, 5, 7"]
    assert column_of([1, 3, 5, 7, 8], 9) == ["at 5 of 9 values of row"]
    assert column_of([1, 2, 3, 4], 9) == ["only at row 1, 2, 3, 4"]
    assert column_of([1, 2, 3, 4, 5], 9) == ["only at row 1 to 5"]


def test_a_range_may_begin_and_end_with_the_values_that_there_are_and_has_no_gap():
    assert column_of(range(5), 6) == ["only at row 0 to 4"]
    assert column_of(range(1, 6), 6) == ["only at row 1 to 5"]
    assert column_of([0, 1, 2, 3, 5], 7) == ["at 5 of 7 values of row"]
    assert column_of([0, 2, 3, 4, 5], 7) == ["at 5 of 7 values of row"]


def test_a_range_that_begins_nowhere_is_counted():
    places = {"request": torch.tensor([NOWHERE, 0, 1, 2, 3, 4])}
    mask = torch.tensor([True] * 5 + [False])
    assert wrong_where(mask, places) == ["5 of 6 elements are wrong", "at 5 of 6 values of request"]
    mask = torch.tensor([False] + [True] * 5)
    assert wrong_where(mask, places) == ["5 of 6 elements are wrong"]


def test_a_place_that_belongs_to_nothing_is_called_none():
    assert coordinate_text(NOWHERE) == "none"
    assert coordinate_text(NOWHERE + 1) == "-2147483647"
    assert coordinate_text(0) == "0"


def test_rows_with_a_gain_that_is_right_are_not_counted_and_the_worst_is_by_ratio():
    value = torch.ones(3, 4, dtype=torch.float64)
    most = torch.tensor([0.01, 0.5, 0.01], dtype=torch.float64)
    expected = Expected(value, 0.5 * value, torch.float32, most)
    actual = value.float() * torch.tensor([[0.9375], [1.25], [1.0078125]])
    (output,) = compare({"y": expected}, {"y": actual}).outputs
    told = worst_gain(output, {"row": torch.arange(3)[:, None]})
    assert told == {"row": 0, "error": -0.0625, "most": 0.01, "wrong": 1, "rows": 3}
