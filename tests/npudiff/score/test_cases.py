"""What is ordinary: cases of round shapes and of random ones, within what an implementation supports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npudiff.model.baselines import BaselineSpec
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import load_components, select_implementations
from npudiff.score.cases import MOST_FIXED, fixed_cases, random_cases, supported

BASELINES = BaselineSpec(
    fixed={"count": (1, 4), "number": (8, 16)}, sizes={"count": range(1, 9)}, plain={"kind": ("plain",)}
)
COMPONENTS = load_components(())


@pytest.fixture
def component(toy):
    return replace(toy.component, baselines=BASELINES)


def test_fixed_shapes_are_all_combinations(component):
    cases = fixed_cases(component, Constraints())
    assert [(len(case.numbers), set(case.numbers)) for case in cases] == [(1, {8}), (1, {16}), (4, {8}), (4, {16})]
    assert {case.kind for case in cases} == {"plain"}


def test_there_are_not_too_many(component):
    many = replace(component, baselines=replace(BASELINES, fixed={"number": range(100)}))
    assert len(fixed_cases(many, Constraints())) == MOST_FIXED


def test_random_shapes_follow_their_seed(component):
    first, again, other = (random_cases(component, Constraints(), seed, 30) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 30
    assert {len(case.numbers) for case in first} == set(range(1, 9))
    assert {case.kind for case in first} == {"plain"}


def test_an_implementation_gets_what_it_supports(component):
    within = Constraints(({"count": (4, 5), "kind": ("odd",)}, {"count": (6,), "kind": ("odd",)}))
    assert {(len(case.numbers), case.kind) for case in fixed_cases(component, within)} == {(4, "odd")}
    assert {len(case.numbers) for case in random_cases(component, within, 1, 20)} == {4, 5, 6}


def test_an_axis_of_which_it_supports_nothing_usual_is_left_free():
    assert supported({"count": (1, 2), "kind": ("plain",)}, Constraints(({"count": (2, 3), "kind": ("odd",)},))) == {
        "count": [2]
    }


def test_a_component_that_does_not_say_has_none(toy):
    assert fixed_cases(toy.component, Constraints()) == random_cases(toy.component, Constraints(), 1, 5) == ()


@pytest.mark.few(15)
@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_component_says_what_is_ordinary_in_its_own_words(component):
    if component.history is not None:
        assert component.baselines is None
        return
    for box in (component.baselines.fixed, component.baselines.sizes, component.baselines.plain):
        Constraints((box,)).checked(component.axes, component.name)
    item = select_implementations([component], [])[0]
    for case in (fixed_cases(component, item.constraints)[0], *random_cases(component, item.constraints, 1, 1)):
        component.check_case(case)
        component.reference(component.baselines.inputs(component.inputs(case)))
