"""What every component owes the engine: draws inside its box, cases that survive JSON, words, coordinates."""

from __future__ import annotations

import json

import pytest
import torch

from draws import default_cases, drawn
from npudiff.device import targets
from npudiff.draw import derived_cases
from npudiff.model.case import dumps, loads
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.run.discovery import load_components

COMPONENTS = load_components(())

every_component = pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)


@every_component
def test_every_default_case_can_be_built_and_is_inside(component):
    for case in default_cases(component):
        component.check_case(case)
        values = component.values(case)
        assert values.keys() == component.axes.keys()
        for axis, used in values.items():
            for value in used:
                assert component.axes[axis].value(axis, value, "here") == value


@every_component
def test_every_value_that_default_cases_have_can_be_asked_for(component):
    """One axis at a time: what a user restricts is what is drawn."""
    values = [component.values(case) for case in default_cases(component, 60)]
    for axis in component.axes:
        seen = sorted({value for used in values for value in used[axis]}, key=str)
        for value in {seen[0], seen[-1]} if seen else ():
            constraints = Constraints.of({axis: (value,)})
            found = drawn(component, constraints, 4)
            assert found, (axis, value)
            for case in found:
                assert constraints.reason_against(component.values(case)) is None, (axis, value, case)


@pytest.mark.parametrize(
    "component", [one for one in COMPONENTS if "batch" in one.axes], ids=lambda component: component.name
)
def test_hundreds_of_requests_can_be_asked_for(component):
    """Each with lengths of its own is more than Hypothesis draws for a case."""
    for case in drawn(component, Constraints.of({"batch": (388,)}), 6):
        assert 388 in component.values(case)["batch"]


@every_component
def test_a_case_survives_json_and_can_be_a_key(component):
    for case in default_cases(component, 60):
        text = dumps(case)
        assert loads(component.case_type, text) == case
        assert {case: 1}[loads(component.case_type, text)] == 1
        assert isinstance(json.loads(text), dict)


@every_component
def test_a_case_is_one_short_line_and_says_where_it_is(component):
    lines = [component.describe(case) for case in default_cases(component)]
    assert all("\n" not in line and line for line in lines)
    assert max(map(len, lines)) < 400
    features = {feature for case in default_cases(component) for feature in component.features(case)}
    assert component.highlighted_region in features


@every_component
def test_the_same_case_gives_the_same_bits(component):
    for case in default_cases(component, 8):
        first, second = component.inputs(case), component.inputs(case)
        for name, one in vars(first).items():
            if isinstance(one, torch.Tensor):
                other = getattr(second, name)
                both = [tensor.clone(memory_format=torch.contiguous_format) for tensor in (one, other)]
                assert torch.equal(*(tensor.view(torch.uint8) for tensor in both)), name


@every_component
def test_the_reference_names_the_outputs_and_coordinates_fit_them(component):
    for case in default_cases(component, 10):
        inputs = component.inputs(case)
        expected = component.reference(inputs)
        assert tuple(expected) == component.outputs
        for name, output in expected.items():
            assert output.bound.shape == output.value.shape
            assert output.bound.dtype == torch.float64
            for values in component.coordinates(inputs, name).values():
                assert values.dim() == output.value.dim()
                assert values.expand(output.value.shape).shape == output.value.shape
                assert not values.is_floating_point()


@every_component
def test_profiles_name_axes_and_values_that_there_are(component):
    for box in component.profiles.values():
        constraints = Constraints.of(box).checked(component.axes, "profile")
        for case in drawn(component, constraints, 10):
            component.check_case(case)
            assert constraints.reason_against(component.values(case)) is None


@every_component
def test_relations_have_names_and_summaries_of_their_own(component):
    names = [relation.name for relation in component.relations]
    assert len(set(names)) == len(names)
    assert all(relation.summary and relation.name.isidentifier() for relation in component.relations)
    for relation in component.relations:
        Constraints((relation.within,)).checked(component.axes, relation.name)
        Constraints((relation.needs,)).checked(component.axes, relation.name)


@every_component
def test_cases_before_and_after_a_case_can_be_derived_from_it(component):
    subject = Subject(component, Implementation(component.name, "any", component.reference), targets.sim(None))
    found = {derived_cases.shrunk: 0, derived_cases.same_size: 0, derived_cases.grown: 0}
    cases = default_cases(component, 20) if component.history is None else []
    for case in cases:
        for find in found:
            other = find(subject, case)
            assert other == find(subject, case) != case
            if other is not None:
                component.check_case(other)
                found[find] += 1
    assert found[derived_cases.same_size] == len(cases)
    assert found[derived_cases.grown] >= 0.8 * len(cases)
    assert found[derived_cases.shrunk] >= 0.4 * len(cases)
