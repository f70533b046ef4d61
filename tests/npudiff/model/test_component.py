"""What an implementation may return, as the engine sees it through its subject."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model import component
from npudiff.model.component import ImplementationRaised, NotApplicable, Property
from npudiff.model.constraints import Constraints, Exclusion
from npudiff.model.job import Budget, Verdict
from npudiff.run.engine import run_case, run_job

SEEDED = Budget(examples=100, seed=1)


def boom(*_):
    raise LookupError("my own defect")


def test_leaving_the_process_is_a_finding(toy):
    def function(inputs, target):
        raise SystemExit(0)

    assert run_job(toy.job(function), SEEDED).verdict is Verdict.RAISED


@pytest.mark.parametrize(
    "result",
    [
        None,
        3,
        [1.0],
        {},
        {"y": 3},
        {"nope": torch.zeros(1)},
    ],
)
def test_what_is_not_an_output_is_a_finding(toy, result):
    outcome = run_job(toy.job(lambda inputs, target: result), SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert isinstance(outcome.failure.error, (TypeError, AttributeError))
    assert outcome.cases == 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda inputs, target: (inputs.x * 2)[None], "shape [1, 1], expected [1]"),
        (lambda inputs, target: inputs.x.double() * 2, "dtype torch.float64, expected torch.float32"),
    ],
)
def test_a_wrong_shape_or_dtype_is_a_finding(toy, function, problem):
    outcome = run_job(toy.job(function), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.comparison.worst_output.problem == problem


def test_not_a_number_is_a_finding(toy):
    outcome = run_job(toy.job(lambda inputs, target: toy.double(inputs) * torch.nan), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.comparison.worst == float("inf")


def test_a_mapping_of_outputs_is_compared_by_name(toy):
    assert run_job(toy.job(lambda inputs, target: {"y": toy.double(inputs)}), SEEDED).verdict is Verdict.HOLDS


def test_outputs_are_in_memory_that_nobody_else_has(toy):
    buffer = torch.zeros(8)

    def reused(inputs, target):
        buffer[: len(inputs.x)] = toy.double(inputs)
        return {"y": buffer[: len(inputs.x)], "z": buffer}

    subject = toy.job(reused).subject
    one = subject.run(subject.component.inputs(toy.Case((1, 2))))
    other = subject.run(subject.component.inputs(toy.Case((3, 4))))
    assert (one["y"].tolist(), other["y"].tolist()) == ([2, 4], [6, 8])
    one["y"].zero_()
    assert one["z"].tolist()[:2] == [2, 4]


def test_an_input_that_is_returned_is_not_the_input(toy):
    subject = toy.job(lambda inputs, target: inputs.x).subject
    inputs = subject.component.inputs(toy.Case((1, 2)))
    subject.run(inputs)["y"].zero_()
    assert inputs.x.tolist() == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: inputs.x.unsqueeze_(0),
        lambda inputs: inputs.x.resize_(1),
        lambda inputs: inputs.x.requires_grad_(),
        lambda inputs: inputs.x.set_(),
        lambda inputs: object.__setattr__(inputs, "x", None),
        lambda inputs: object.__setattr__(inputs, "x", inputs.x.to("meta")),
        lambda inputs: object.__setattr__(inputs, "kind", inputs),
    ],
)
def test_inputs_that_are_made_something_else_are_a_finding(toy, change):
    def function(inputs, target):
        right = toy.double(inputs)
        change(inputs)
        return right

    outcome = run_job(toy.job(function, prop=toy.REPEATS), SEEDED)
    assert str(outcome.failure.error) == "the implementation wrote into its inputs: x"


def test_an_output_of_which_the_reference_says_nothing_is_a_finding(toy):
    for prop in (toy.REPEATS, EQUIVALENCE):
        outcome = run_job(toy.job(lambda inputs, target: {"y": toy.double(inputs), "z": inputs.x}, prop=prop), SEEDED)
        assert outcome.verdict is (Verdict.HOLDS if prop is toy.REPEATS else Verdict.WRONG)
    assert outcome.failure.comparison.worst_output.problem == "returned, and of these inputs there is no such output"


def test_a_relation_that_fails_of_wrong_outputs_tells_those(toy):
    def looks_up(subject, case):
        inputs = subject.component.inputs(case)
        return toy.REPEATS.check(subject, case) if subject.run(inputs)["y"][3] else None

    lookup = Property("lookup", "looks the fourth up", looks_up)
    outcome = run_case(toy.job(lambda inputs, target: inputs.x[:2] * 2, prop=lookup), toy.Case((1, 2, 3, 4)))
    assert outcome.failure.comparison.worst_output.problem == "shape [2], expected [4]"
    assert outcome.failure.comparison.context == "one run of lookup"
    with pytest.raises(IndexError):  # all is right, so it is the relation
        run_case(toy.job(prop=lookup), toy.Case((1, 2)))


def test_a_subject_says_which_derived_cases_it_does_not_support(toy):
    subject = toy.job(supports={"kind": ("plain",)}).subject
    subject.require(toy.Case((1,)), "the same")
    with pytest.raises(NotApplicable, match=r"^the other: kind odd is not in \{plain\}$"):
        subject.require(toy.Case((1,), "odd"), "the other")


def test_a_subject_keeps_the_exception_of_its_implementation(toy):
    with pytest.raises(ImplementationRaised, match="LookupError: my own defect") as caught:
        toy.job(boom).subject.run(None)
    assert isinstance(caught.value.__cause__, LookupError)


def test_whatever_is_written_into_inputs_is_seen(toy):
    def writing(value):
        def function(inputs, target):
            y = toy.double(inputs)
            inputs.x[0] = value
            return y

        return function

    inputs = toy.component.inputs(toy.Case((5, 6)))
    toy.job(writing(5.0)).subject.run(inputs)  # what was there before
    for value in range(16, 32):
        inputs = toy.component.inputs(toy.Case((5, 6)))
        with pytest.raises(ImplementationRaised, match=r"the implementation wrote into its inputs: x$"):
            toy.job(writing(float(value))).subject.run(inputs)


def test_what_the_device_says_later_belongs_to_the_call(toy):
    def lost():
        raise RuntimeError("507015")

    subject = toy.job().subject
    late = dataclasses.replace(subject, target=dataclasses.replace(subject.target, synchronize=lost))
    with pytest.raises(ImplementationRaised, match="507015"):
        late.run(toy.component.inputs(toy.Case((1,))))


def test_an_interrupt_is_the_users_where_somebody_may_interrupt_and_else_the_implementations(toy, monkeypatch):
    def interrupting(inputs, target):
        raise KeyboardInterrupt

    subject, inputs = toy.job(interrupting).subject, toy.component.inputs(toy.Case((1,)))
    monkeypatch.setattr(component, "_interrupts_ignored", False)
    with pytest.raises(KeyboardInterrupt):
        subject.run(inputs)
    component.ignore_interrupts()
    with pytest.raises(ImplementationRaised, match="KeyboardInterrupt"):
        subject.run(inputs)


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), pytest.skip.Exception("no")])
def test_leaving_is_no_way_out(toy, error):
    def leaving(inputs, target):
        raise error

    with pytest.raises(ImplementationRaised):
        toy.job(leaving).subject.run(toy.component.inputs(toy.Case((1,))))


def test_a_property_says_nothing_where_an_output_is_left_out(toy):
    outputs = toy.job(lambda inputs, target: {"y": toy.double(inputs)}).subject.run(
        toy.component.inputs(toy.Case((1,)))
    )
    assert list(outputs) == ["y"]
    with pytest.raises(NotApplicable, match="the implementation does not return z"):
        outputs["z"]


def test_a_case_that_is_left_out_is_not_run_and_says_why(toy):
    subject = toy.job(supports={"kind": ("plain",)}).subject
    left_out = Exclusion(Constraints.of({"number": range(7, 8)}), "known: a link")
    without = dataclasses.replace(subject, excluded=(left_out,))
    assert without.reason_against(toy.Case((1, 7))) == "known: a link"
    assert without.reason_against(toy.Case((1, 6))) is None
    assert without.reason_against(toy.Case((7,), "odd")) == "kind odd is not in {plain}"
    with pytest.raises(NotApplicable, match="the other: known: a link"):
        without.require(toy.Case((7,)), "the other")
