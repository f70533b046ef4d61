"""A case that is declared: what is derived from its fields."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from draws import drawn
from npudiff.draw.cases import Case, axis, choice, derived, part, seed
from npudiff.model.case import loads
from npudiff.model.component import Component
from npudiff.model.constraints import Constraints, Joined, Numbers


@dataclass(frozen=True)
class SomeCase(Case):
    rows: int = axis(
        "rows",
        range(1, 101),
        drawn=(1, 2, 50),
        affordable=lambda case, rows: rows * case.width <= 100,
        shown="{} row(s)",
    )
    width: int = axis("columns", range(1, 65), 4, drawn=(4, 2, 8), shown="width {}", always=True, was="columns")
    kind: str = axis("kind", ("plain", "gemma"), "plain", region="{}")
    limit: float | None = axis(
        "limit", Numbers(0.5, 8), None, optional=True, drawn=(None, 1.5), applies=lambda case: case.kind == "gemma",
        shown="limit {:g}",
    )  # fmt: skip
    low: int = part(3)
    high: int = part(5)
    seed: int = seed()

    size = choice(("small", "large"))
    drawn_first = ("size", "width")
    shown_first = ("width",)

    @derived(
        "pair", Joined((range(1, 10), range(1, 10))), drawn=("3/5", "4/4"),
        into=lambda text: {"low": int(text[0]), "high": int(text[2])},
    )  # fmt: skip
    def pair(self):
        return f"{self.low}/{self.high}"

    def problems(self):
        if self.low > self.high:
            yield f"low is at most high, got {self.low} and {self.high}"

    def regions(self):
        return {"one row": self.rows == 1}


COMPONENT = Component(
    "some", "", SomeCase, ("y",), lambda case: case, lambda inputs: {}, lambda inputs, output: {"row": torch.arange(1)}
)


def test_a_component_takes_from_its_case_what_it_does_not_say():
    case = SomeCase(2, kind="gemma", limit=1.5, seed=7)
    assert list(COMPONENT.axes) == ["rows", "width", "kind", "limit", "pair"]
    assert COMPONENT.values(case) == {
        "rows": (2,),
        "width": (4,),
        "kind": ("gemma",),
        "limit": (1.5,),
        "pair": ("3/5",),
    }
    assert COMPONENT.describe(case) == "width 4 · 2 rows · gemma · limit 1.5 · seed 7"
    assert list(COMPONENT.features(case)) == ["gemma"]
    assert COMPONENT.describe(SomeCase(1)) == "width 4 · 1 row"
    assert list(COMPONENT.features(SomeCase(1))) == ["one row"]
    assert COMPONENT.values(SomeCase(1, limit=1.5))["limit"] == ()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (SomeCase(0), "rows must lie in 1..100, got 0"),
        (SomeCase(1, kind="other"), "kind is one of plain, gemma, got other"),
        (SomeCase(1, limit=9.0), "limit must be none or lie in 0.5..8, got 9.0"),
        (SomeCase(1, low=0), "pair is one of {1..9}|pair is one of"),
        (SomeCase(1, low=6), "low is at most high, got 6 and 5"),
        (SomeCase(1, seed=-1), "seed must lie in 0.."),
    ],
)
def test_each_refusal_names_one_field(case, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        COMPONENT.check_case(case)


def test_cases_are_drawn_as_they_are_declared():
    cases = drawn(COMPONENT, Constraints(), 200)
    assert {case.width for case in cases} == {4, 2, 8}
    assert {case.rows for case in cases if case.width == 2} == {1, 2, 50}
    assert {case.rows for case in cases if case.width == 4} == {1, 2}
    assert {case.pair for case in cases} == {"3/5", "4/4"}
    assert {case.limit for case in cases if case.kind == "plain"} == {None}
    assert {case.limit for case in cases if case.kind == "gemma"} == {None, 1.5}
    assert all(COMPONENT.check_case(case) is None for case in cases)


def test_constraints_may_ask_for_what_is_legal_and_not_drawn():
    cases = drawn(COMPONENT, Constraints.of({"limit": (2.5,), "kind": ("gemma",), "pair": ("1/9",)}), 20)
    assert {(case.limit, case.low, case.high) for case in cases} == {(2.5, 1, 9)}
    assert {case.width * case.rows for case in drawn(COMPONENT, Constraints.of({"rows": (90,)}), 20)} <= {180, 360, 720}


def test_a_case_that_has_a_problem_is_not_drawn():
    cases = drawn(COMPONENT, Constraints.of({"pair": ("9/1", "1/9")}), 20)
    assert {case.pair for case in cases} == {"1/9"}


def test_an_earlier_name_of_a_field_is_read():
    assert loads(SomeCase, '{"rows":3,"columns":8}') == SomeCase(3, 8)
    with pytest.raises(ValueError, match="unknown field 'colums'"):
        loads(SomeCase, '{"rows":3,"colums":8}')


def test_a_component_whose_case_is_not_declared_says_everything_itself():
    with pytest.raises(ValueError, match="some says nothing of axes, strategy, values"):
        Component("some", "", int, ("y",), abs, lambda inputs: {}, lambda inputs, output: {})


@dataclass(frozen=True)
class Divided(Case):
    rows: int = axis("rows", range(1, 101), drawn=(1, 2, 3, 4, 5, 6))
    seed: int = seed()

    @derived("whether rows come in pairs", (False, True))
    def even(self):
        return self.rows % 2 == 0


@pytest.mark.parametrize("even", [False, True])
def test_constraints_of_an_axis_that_is_computed_hold_for_what_is_drawn(even):
    made = Component("divided", "", Divided, ("y",), lambda case: case, lambda inputs: {})
    cases = drawn(made, Constraints.of({"even": (even,)}), 40)
    assert {case.even for case in cases} == {even}
    assert {case.rows for case in cases} == ({2, 4, 6} if even else {1, 3, 5})
