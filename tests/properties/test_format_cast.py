from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff import implementation
from npudiff.findings.finding import worst_element
from npudiff.judge.compare import compare
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.format_cast import FormatCastCase, component
from npudiff.reference.format_cast import format_cast
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

check_case = FormatCastCase.check
describe = FormatCastCase.describe
features = FormatCastCase.features


def run(inputs, target):
    return {name: expected.value for name, expected in format_cast(inputs).items()}


def per_matrix(inputs, storage):
    rows, columns = inputs.tensor.shape[-2:]
    return storage.view(inputs.tensor.numel() // (rows * columns), -1)


# Each breaks one relation, and holds the two others.
BROKEN = {
    "matrices_do_not_mix": lambda i, storage: storage.roll(1) if i.tensor.dim() > 2 else storage,
    "strips_do_not_mix": lambda i, storage: (
        per_matrix(i, storage).flip(1).flatten() if i.tensor.shape[-1] > 32 else storage
    ),
    "only_bits_move": lambda i, storage: storage + (i.tensor.dtype in (torch.float16, torch.int32)),
}


def outcome(name, function, examples=40):
    (prop,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("format_cast", name="device")(function)
    job = Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)
    return run_job(job, Budget(examples=examples, seed=1, shrink=False))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_a_relation_sees_the_device_that_breaks_it_and_no_other(name):
    assert outcome(name, run).verdict is Verdict.HOLDS
    for broken, change in BROKEN.items():

        def device(inputs, target, change=change):
            outputs = run(inputs, target)
            return {**outputs, "storage": change(inputs, outputs["storage"])}

        assert (outcome(name, device).verdict is Verdict.WRONG) == (broken == name), broken


@pytest.mark.slow
def test_relations_apply_to_nearly_every_case():
    for relation in component.relations:
        found = outcome(relation.name, run, 60)
        assert found.not_applicable.total() <= 0.05 * found.cases


@pytest.mark.slow
def test_cases_are_where_bugs_live():
    cases = drawn(component, Constraints(), 300)
    shares = {name: sum(name in features(case) for case in cases) / len(cases) for name in features(BUSY)}
    assert min(shares.values()) > 0.1, shares
    assert {len(case.shape) for case in cases} == {2, 3, 4}


BUSY = FormatCastCase(33, 65, (2, 3), "int8", "columns", 7)


def test_features_and_description():
    assert set(features(BUSY)) == {
        "padded", "columns padded", "several tiles both ways", "C0 32", "view", "several matrices"
    }  # fmt: skip
    assert describe(BUSY) == "2 x 3 x 33 x 65 · int8 · columns · seed 7"
    assert "narrower than a tile" in features(replace(BUSY, columns=31))
    assert features(FormatCastCase(16, 16)) == []
    assert describe(FormatCastCase(16, 16)) == "16 x 16 · bfloat16"


@pytest.mark.parametrize("output", component.outputs)
@pytest.mark.parametrize("view", ["whole", "rows", "columns", "transposed"])
def test_coordinates_say_where_in_the_tensor_an_element_is(output, view):
    inputs = component.inputs(FormatCastCase(18, 20, (3,), view=view))
    value = format_cast(inputs)[output].value
    places = {name: place.expand(value.shape) for name, place in component.coordinates(inputs, output).items()}
    if output == "format":
        assert not places
        return
    inside = (places["row"] < 18) & (places["column"] < 20)
    found = inputs.tensor[places["matrix"][inside], places["row"][inside], places["column"][inside]]
    assert torch.equal(found, value[inside])
    assert not value[~inside].any()
    assert bool(inside.all()) == (output != "storage")


def test_a_wrong_element_is_named_by_its_place_in_the_tensor():
    inputs = component.inputs(FormatCastCase(18, 20))
    outputs = run(inputs, None)
    outputs["storage"][256 * 2 + 16 + 3] = 0  # the second strip of 16 columns, row 1, column 3
    (storage, *_) = compare(component.reference(inputs), outputs).outputs
    place = worst_element(storage, component.coordinates(inputs, "storage"))
    assert (place["matrix"], place["row"], place["column"]) == (0, 1, 19)
    outputs["storage"][256 * 2 + 16 + 3] = inputs.tensor[1, 19]
    outputs["storage"][256 * 3 + 16 * 5 + 6] = 1  # the padding of the last tile
    (storage, *_) = compare(component.reference(inputs), outputs).outputs
    place = worst_element(storage, component.coordinates(inputs, "storage"))
    assert (place["matrix"], place["row"], place["column"]) == (0, 16 + 5, 16 + 6)


@pytest.mark.parametrize(
    "changed",
    [{"rows": 0}, {"columns": 131_073}, {"leading": (1, 1, 1)}, {"leading": (0,)}, {"dtype": "int64"},
     {"view": "diagonal"}, {"seed": -1}, {"rows": 65_536, "columns": 65_536}],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(changed):
    with pytest.raises(ValueError, match=r"got|unknown|more than"):
        check_case(replace(FormatCastCase(16, 16), **changed))
