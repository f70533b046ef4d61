"""An output that is moved but for some elements: compared as one that says it of each, with nothing lost."""

from __future__ import annotations

import pytest
import torch

from npudiff.judge.compare import bounds_of, compare
from npudiff.reference.bounds import Computed, Expected, Updated

BEFORE = torch.tensor([[1.5, -0.0, 3.0], [float("nan"), 5.0, 6.0]], dtype=torch.bfloat16)
PLACES = torch.tensor([5, 1])


def updated():
    return Updated(
        Computed(BEFORE.clone(), PLACES, torch.tensor([60.0, 10.0]).double(), torch.tensor([0.5, 0.25]).double())
    )


def written(**changes):
    output = BEFORE.clone()
    output.view(-1)[PLACES] = torch.tensor([60.0, 10.0], dtype=torch.bfloat16)
    for place, value in changes.items():
        output.view(-1)[int(place[1:])] = value
    return output


def compared(actual, expected=None):
    return compare({"y": expected or updated()}, {"y": actual}).outputs[0]


def test_it_says_the_value_and_the_bound_of_each_element():
    one = updated()
    assert one.dtype == torch.bfloat16
    assert torch.equal(one.value.nan_to_num(-1), torch.tensor([[1.5, 10.0, 3.0], [-1, 5.0, 60.0]]).double())
    assert torch.equal(one.bound, torch.tensor([[0, 0.25, 0], [0, 0, 0.5]]).double())
    assert torch.equal(bounds_of({"y": one})["y"], one.bound)


def test_what_is_right_is_told_by_what_was_computed():
    output = compared(written(p5=60.25))
    assert output.worst == 0.5
    assert not output.exact
    assert output.actual.shape == (2,)


@pytest.mark.parametrize(
    ("changes", "worst"),
    [
        ({"p5": 61.0}, 2.0),
        ({"p1": float("nan")}, torch.inf),
        ({"p0": 1.0}, torch.inf),
        ({"p3": 0.0}, torch.inf),  # a number where something else's NaN was
        ({"p4": float("nan")}, torch.inf),
    ],
)
def test_what_is_wrong_is_told_where_it_is(changes, worst):
    output = compared(written(**changes))
    assert output.worst == worst
    assert output.wrong.shape == BEFORE.shape
    (place,) = (int(name[1:]) for name in changes)
    assert bool(output.wrong.flatten()[place])


def test_a_zero_that_was_moved_keeps_its_sign():
    zeros = torch.tensor([-0.0, 0.0])
    one = Updated(Computed(zeros, torch.tensor([], dtype=torch.int64), torch.tensor([]), torch.tensor([]).double()))
    assert compared(zeros.clone(), one).worst == 0
    assert compared(torch.tensor([0.0, 0.0]), one).worst == torch.inf


def test_a_zero_of_a_cache_that_was_computed_into_keeps_its_sign():
    """As any other bit of what was moved does."""
    actual = written()
    actual[0, 1], one = 10.0, updated()
    one.computed.moved[1, 1], actual[1, 1] = -0.0, 0.0
    assert compared(actual, one).wrong.nonzero().tolist() == [[1, 1]]


def test_nothing_is_said_of_an_element_without_a_bound():
    one = Updated(Computed(BEFORE.clone(), torch.tensor([4]), torch.zeros(1).double(), torch.full((1,), torch.inf)))
    for any_number in (7.0, float("nan"), float("inf")):
        output = BEFORE.clone()
        output[1, 1] = any_number
        assert compared(output, one).worst == 0


@pytest.mark.parametrize("wrong", [BEFORE[:1], BEFORE.float()])
def test_another_shape_or_dtype_is_a_problem(wrong):
    output = compared(wrong)
    assert output.problem
    assert output.worst == torch.inf


@pytest.mark.parametrize("change", [{}, {"p5": 60.25}, {"p5": 61.0}, {"p0": 2.0}, {"p1": 9.5}])
def test_an_expectation_of_each_element_gives_the_same_ratio(change):
    one, actual = updated(), written(**change).nan_to_num(4.0)
    one.computed.moved.nan_to_num_(4.0)
    whole = Expected(one.value, one.bound, one.dtype)
    assert compared(actual, one).worst == compared(actual, whole).worst
