from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import draws
from npudiff.model.case import dumps, loads
from npudiff.model.constraints import Constraints, parse_where
from npudiff.properties.swa_mask import SwaMaskCase, build_inputs, component, coordinates
from npudiff.reference.swa_mask import swa_mask

AXES = SwaMaskCase.axes()

cases = SwaMaskCase.strategy
check_case = SwaMaskCase.check
describe = SwaMaskCase.describe
features = SwaMaskCase.features
values = SwaMaskCase.values

DRAWN = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def drawn(constraints, count):
    return draws.drawn(component, constraints, count)


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(),
        parse_where(["kv_length=131072", "window=4096"]),
        parse_where(["batch=5", "window=none", "lengths_dtype=int64"]),
        parse_where(["kv_length=1..39", "column=true"]),
        Constraints.of([{"window": (512,), "kv_length": range(500, 520)}, {"window": (None,), "batch": (1,)}]),
        *(Constraints.of(box) for box in component.profiles.values()),
    ],
)
def test_every_case_lies_within_the_constraints(constraints):
    for case in drawn(constraints, 150):
        check_case(case)
        assert constraints.reason_against(values(case)) is None


def test_a_limited_capacity_is_respected():
    constraints = Constraints.of({"capacity": range(1, 129)})
    assert all(constraints.reason_against(values(case)) is None for case in drawn(constraints, 100))


def test_default_cases_reach_every_region():
    found = drawn(Constraints(), 300)
    reached = {feature for case in found for feature in features(case)}
    assert reached == {"query length 1", "ragged", "window cuts", "blind rows", "long history"}
    assert {case.dtype for case in found} == {"int32", "int64"}
    assert {case.column for case in found} == {False, True}
    assert any(case.window is None for case in found)
    distances = {length - case.window for case in found if case.window for length in case.kv_lengths}
    assert {-1, 0, 1, 2} <= distances
    assert max(max(case.kv_lengths) for case in found if case.window) > 4096


@DRAWN
@given(cases(Constraints()))
def test_a_case_survives_json_and_has_legal_values_on_every_axis(case):
    assert loads(SwaMaskCase, dumps(case)) == case
    by_axis = values(case)
    assert by_axis.keys() == AXES.keys()
    for name, used in by_axis.items():
        assert all(AXES[name].value(name, value, "test") == value for value in used)


@DRAWN
@given(cases(Constraints()))
def test_inputs_say_what_the_case_says(case):
    inputs = build_inputs(case)
    assert inputs.kv_lengths.flatten().tolist() == list(case.kv_lengths)
    assert inputs.kv_lengths.dtype == getattr(torch, case.dtype)
    assert inputs.kv_lengths.shape == ((len(case.kv_lengths), 1) if case.column else (len(case.kv_lengths),))
    assert (inputs.capacity, inputs.window) == (case.capacity, case.window)
    assert inputs.capacity == max([1, *case.kv_lengths]) + case.spare


@DRAWN
@given(cases(Constraints.of({"kv_length": range(40), "batch": (1, 2, 3)})))
def test_coordinates_name_request_key_and_distance_of_every_cell(case):
    inputs = build_inputs(case)
    mask = swa_mask(inputs)["mask"].value
    places = {name: place.expand(mask.shape) for name, place in coordinates(inputs, "mask").items()}
    visible = (places["distance to query"] >= 0) & (places["kv length"] > 0)
    if case.window is not None:
        visible &= places["distance to query"] < case.window
    assert torch.equal(mask, ~visible)
    assert places["request"][:, 0, 0].tolist() == list(range(len(case.kv_lengths)))
    assert places["key"][0, 0].tolist() == list(range(case.capacity))


def test_description():
    assert describe(SwaMaskCase((3, 0), 2, 1)) == "kv3 kv0 · window 2 · capacity 4 · int32"
    assert describe(SwaMaskCase((1,), column=True)) == "kv1 · window none · capacity 1 · int32 · column"


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_lengths": ()},
        {"kv_lengths": (-1,)},
        {"kv_lengths": (2**24 + 1,)},
        {"kv_lengths": (2**24,) * 5},
        {"window": 0},
        {"window": -1},
        {"window": 2**31 + 1},
        {"spare": -1},
        {"dtype": "int16"},
    ],
)
def test_a_case_that_cannot_be_built_is_refused(changes):
    plain = SwaMaskCase((3,), 2)
    check_case(plain)
    with pytest.raises(ValueError):
        check_case(replace(plain, **changes))


@pytest.mark.slow
def test_a_batch_of_thousands_has_short_requests():
    """With a window of which no border is affordable, any length would do, up to gigabytes."""
    batches = Constraints(({"batch": range(2, 4097)},))
    cells = [len(case.kv_lengths) * case.capacity for case in draws.drawn(component, batches, 800)]
    assert 2**18 < max(cells) < 2**23
