"""Simpler cases in the words of a case, and what is left of a failing one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from npudiff.draw.simpler import simpler_cases
from npudiff.model.job import Budget
from npudiff.run.engine import run_job


@dataclass(frozen=True)
class Request:
    """A part of a case."""

    new: int
    total: int


@dataclass(frozen=True)
class Call:
    """A case with fields of every kind."""

    requests: tuple[Request, ...]
    width: int = 64
    window: int | None = None
    recipe: str = "plain"
    sliced: bool = False
    scale: float = 1.0


def differing(case):
    names = ("requests", "width", "window", "recipe", "sliced", "scale")
    return [{name: getattr(one, name) for name in names if getattr(one, name) != getattr(case, name)}
            for one in simpler_cases(case)]  # fmt: skip


def test_each_is_simpler_in_one_field_but_for_the_first_which_is_usual_in_all():
    case = Call((Request(2, 50),), 99, 40, "odd", sliced=True, scale=0.5)
    found = differing(case)
    assert found[0] == {"recipe": "plain", "sliced": False, "scale": 1.0}
    assert all(len(one) == 1 for one in found[1:])
    assert [one["width"] for one in found if "width" in one][:4] == [64, 1, 2, 3]
    assert [one["width"] for one in found if "width" in one][-2:] == [24, 49]
    assert [one["window"] for one in found if "window" in one][:2] == [1, 2]
    assert [one["scale"] for one in found[1:] if "scale" in one] == [1.0]
    assert {"requests": ()} not in found
    assert {"requests": (Request(2, 1),)} in found
    assert not any("requests" in one and one["requests"] and one["requests"][0].new != 2 for one in found)


def test_numbers_that_are_small_or_usual_stay():
    assert differing(Call((), 64, 32)) == []
    assert differing(Call((), 3, 9)) == []


def test_of_several_requests_one_is_tried_first():
    case = Call((Request(1, 2), Request(3, 4), Request(5, 6)))
    assert [one["requests"] for one in differing(case)[:3]] == [(part,) for part in case.requests]


@pytest.mark.few(1)
@pytest.mark.parametrize("smallest", [33, 64, 1001])
def test_an_outlier_is_made_as_small_as_it_fails(toy, smallest):
    def wrong(inputs, target):
        return inputs.x * 2 + (inputs.x >= smallest)

    for seed in range(6):
        outcome = run_job(toy.job(wrong), Budget(examples=200, seed=seed))
        assert outcome.failure.case == toy.Case((smallest,)) if smallest < 1001 else outcome.failure is None


def test_what_fails_otherwise_is_no_simpler_form_of_it(toy):
    def wrong(inputs, target):
        if len(inputs.x) == 1:
            raise ValueError("one")
        return inputs.x * 2 + 1

    given = ('{"numbers": [700, 900], "kind": "odd"}',)
    outcome = run_job(toy.job(wrong), Budget(examples=50, seed=3, explicit_cases=given))
    assert outcome.failure.error is None
    assert outcome.failure.case == toy.Case((1, 1))


def test_nothing_is_made_simpler_where_nobody_wants_it(toy):
    def wrong(inputs, target):
        return inputs.x * 2 + 1

    given = ('{"numbers": [7, 9], "kind": "odd"}',)
    outcome = run_job(toy.job(wrong), Budget(examples=50, shrink=False, explicit_cases=given))
    assert outcome.failure.case == toy.Case((7, 9), "odd")
