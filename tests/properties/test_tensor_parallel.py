"""Cases, data and relations of layers over ranks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from draws import default_cases, drawn
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.properties.tensor_parallel import component
from npudiff.properties.tensor_parallel.case import TensorParallelCase
from npudiff.properties.tensor_parallel.inputs import STEP, build_inputs
from npudiff.reference.sharded_linear import FORMATS
from npudiff.reference.tensor_parallel import FORMS, LAYERS

ROW = TensorParallelCase(4, ranks=2, biased=True)
RELATIONS = {prop.name: prop for prop in component.relations}


class Answers(Subject):
    """A subject whose outputs are the reference's values, changed by a function of inputs and outputs."""

    def __init__(self, change=lambda inputs, outputs: outputs):
        object.__setattr__(self, "component", component)
        object.__setattr__(self, "change", change)

    def run(self, inputs):
        expected = component.reference(inputs)
        return self.change(inputs, {name: output.value.to(output.dtype) for name, output in expected.items()})

    def expected(self, inputs):
        return component.reference(inputs)

    def require(self, case, why):
        component.check_case(case)


def test_every_layer_form_format_and_number_of_ranks_is_drawn():
    cases = default_cases(component, 200)
    assert {case.layer for case in cases} == set(LAYERS)
    assert {case.form for case in cases} == set(FORMS)
    assert {case.format for case in cases} == set(FORMATS)
    assert {case.ranks for case in cases} == {1, 2, 3, 4, 8}
    regions = [feature for case in cases for feature in component.features(case)]
    for name in ("several ranks", "tokens do not divide", "fewer tokens than ranks", "unequal parts", "offset", "bias",
                 "scales of the states"):  # fmt: skip
        assert name in regions


def test_no_state_of_the_static_format_lies_in_the_middle_between_two_integers():
    for dtype in ("bfloat16", "float16"):
        states = build_inputs(replace(ROW, tokens=50, format="w8a8_static", dtype=dtype)).states.double() / STEP
        assert not bool(((states - states.floor()) == 0.5).any())


def test_sums_of_parts_cancel_where_the_recipe_says_so():
    given = build_inputs(replace(ROW, recipe="cancelling", biased=False))
    parts = [given.states[:, cut].double() @ given.first.weight[:, cut].double().t()
             for cut in (slice(0, 16), slice(16, 32))]  # fmt: skip
    assert float(parts[0].abs().mean()) > 5
    assert float((parts[0] + parts[1]).abs().max()) == 0


@pytest.mark.parametrize(("changes", "said"), [
    ({"form": "own_tokens", "layer": "column"}, "has no form own_tokens"),
    ({"projections": "qkv"}, "row has no form whole or projections qkv"),
    ({"scales": "group"}, "float has no groups"),
    ({"format": "w4a8", "ranks": 3, "width": 16}, "3 ranks cannot share 16 parts"),
    ({"tail": 8}, "only the inner axis of a layer with groups"),
    ({"format": "w4a8", "scales": "group"}, "whole groups of 256"),
    ({"format": "w4a16", "scales": "group", "width": 64}, "longer than one"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(ROW, **changes).check()


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_hold_of_the_reference(name):
    prop, subject = RELATIONS[name], Answers()
    for case in drawn(component, Constraints((prop.within,)), 8):
        assert prop.check(subject, case).holds, case


def more_on_ranks(inputs, outputs):
    """A bias too much for each rank but the first."""
    extra = (inputs.ranks - 1) * inputs.first.bias.to(outputs["output"].dtype)
    return {**outputs, "output": outputs["output"] + extra}


def more_in_parts(inputs, outputs):
    return outputs if inputs.form == "whole" else more_on_ranks(inputs, outputs)


def by_place(inputs, outputs):
    places = torch.arange(len(outputs["output"])).unsqueeze(1).to(outputs["output"].dtype)
    return {**outputs, "output": outputs["output"] + places}


def by_first_part(inputs, outputs):
    return {**outputs, "output": outputs["output"] + inputs.states[0, 0]}


@pytest.mark.parametrize(("name", "change", "case"), [
    ("any_number_of_ranks", more_on_ranks, ROW),
    ("sequence_is_whole", more_in_parts, replace(ROW, form="sequence")),
    ("tokens_do_not_mix", by_place, ROW),
    ("parts_on_other_ranks", by_first_part, ROW),
    ("ranks_agree", by_place, ROW),
])  # fmt: skip
def test_relations_fail_of_what_is_wrong(name, change, case):
    assert not RELATIONS[name].check(Answers(change), case).holds


def test_coordinates_say_which_column_of_the_whole_layer_it_is():
    case = replace(ROW, layer="column", projections="gate_up")
    where = SimpleNamespace(**component.coordinates(build_inputs(case), "output"))
    assert where.rank.flatten().tolist() == [0] * 4 + [1] * 4
    assert where.token.flatten().tolist() == [0, 1, 2, 3] * 2
    assert where.column[0].tolist() == [*range(16), *range(32, 48)]
    assert where.column[4].tolist() == [*range(16, 32), *range(48, 64)]
    divided = SimpleNamespace(**component.coordinates(build_inputs(replace(ROW, form="sequence")), "output"))
    assert divided.token.flatten().tolist() == [0, 1, 2, 3]
