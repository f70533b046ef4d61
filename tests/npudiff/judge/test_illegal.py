"""An implementation that checks its inputs refuses illegal ones, or is right; what it may not do is a finding."""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings

from npudiff.judge.illegal import ILLEGAL_IS_REFUSED
from npudiff.judge.others import properties_with_others
from npudiff.model import illegal
from npudiff.model.component import ImplementationRaised, NotApplicable
from npudiff.model.constraints import Constraints
from npudiff.model.illegal import (
    Illegal,
    beyond,
    constant,
    illegal_inputs,
    place_of_last_page,
    with_field,
    wrong_element,
)
from npudiff.model.red_zones import NoZones
from npudiff.run.discovery import component_names, load_component


@dataclass(frozen=True)
class Inner:
    """A field of a field."""

    rows: torch.Tensor
    none: torch.Tensor | None = None


@dataclass(frozen=True)
class Given:
    """Inputs of several kinds."""

    inner: Inner
    table: torch.Tensor
    lengths: tuple[int, ...] = (4, 9)


GIVEN = Given(Inner(torch.ones(3, 2, dtype=torch.bfloat16)), torch.arange(8, dtype=torch.int32).view(2, 4))


@pytest.fixture
def subject(toy):
    """A subject of a function, whose component says that numbers may be negative."""

    def of(function):
        found = toy.job(function).subject
        negative = wrong_element("a negative number", "x", constant(-1))
        return replace(found, component=replace(found.component, illegal=(negative,)))

    return of


def doubled(inputs):
    if inputs.x.dim() != 1 or inputs.x.dtype != torch.float32 or (inputs.x < 0).any():
        raise ValueError("not mine")
    return inputs.x * 2


def test_who_refuses_or_is_right_holds(subject, toy):
    assert ILLEGAL_IS_REFUSED.check(subject(lambda inputs, target: doubled(inputs)), toy.Case((3, 4))).holds


def test_an_answer_where_there_is_none_is_told(subject, toy):
    def near(inputs, target):
        return inputs.x * 2 if (inputs.x < 0).any() else doubled(inputs)

    found = ILLEGAL_IS_REFUSED.check(subject(near), toy.Case((3, 4)))
    assert not found.holds
    assert (
        found.worst_output.problem
        == "an answer, given a negative number; the inputs are illegal, and have to be refused"
    )


def test_all_that_is_not_refused_is_told_at_once(subject, toy):
    found = ILLEGAL_IS_REFUSED.check(subject(lambda inputs, target: inputs.x * 2), toy.Case((3, 4)))
    said = "answers that are wrong, given illegal inputs: a negative number, x of another dtype"
    assert found.worst_output.problem == said


def test_an_answer_where_there_is_one_has_to_be_right(subject, toy):
    def pads(inputs, target):
        if (inputs.x < 0).any() or inputs.x.dim() > 1:
            raise ValueError
        return torch.nn.functional.pad(inputs.x.float() * 2, (0, 2 - len(inputs.x)))

    found = ILLEGAL_IS_REFUSED.check(subject(pads), toy.Case((3, 4)))
    assert (found.holds, found.context) == (
        False,
        "given x with a row less, of which the reference has a right answer",
    )


def test_what_is_no_refusal_is_told_with_what_was_given(subject, toy):
    def faults(inputs, target):
        if (inputs.x < 0).any():
            raise RuntimeError("the aicore timed out [error 507014]")
        return doubled(inputs)

    def writes(inputs, target):
        if (inputs.x < 0).any():
            ctypes.memset(inputs.x.data_ptr() + 8, 0, 1)
            raise ValueError("too late")
        return doubled(inputs)

    def leaves(inputs, target):
        if (inputs.x < 0).any():
            raise SystemExit(0)
        return doubled(inputs)

    for function, said in (
        (faults, r"given a negative number: RuntimeError: the aicore timed out \[error 507014\]"),
        (writes, "given a negative number: WroteOutside: the implementation wrote 1 byte behind the input x"),
        (leaves, "given a negative number: SystemExit: 0"),
    ):
        with pytest.raises(ImplementationRaised, match=said):
            ILLEGAL_IS_REFUSED.check(subject(function), toy.Case((3, 4)))


def test_only_who_says_that_it_checks_is_asked(toy):
    item = toy.job(lambda inputs, target: inputs.x).subject.implementation
    assert ILLEGAL_IS_REFUSED not in properties_with_others(toy.component, item)
    assert ILLEGAL_IS_REFUSED in properties_with_others(toy.component, replace(item, checks=True))
    with_history = load_component("hybrid_pools")
    assert ILLEGAL_IS_REFUSED not in properties_with_others(with_history, replace(item, checks=True))


def test_one_element_is_wrong_wherever_it_stands():
    assert wrong_element("", "lengths", constant(-1), constant(1)).change(GIVEN).lengths == (4, -1)
    changed = wrong_element("", "table", beyond("inner.rows"), lambda _: (1, 2)).change(GIVEN)
    assert changed.table.tolist() == [[0, 1, 2, 3], [4, 5, 3, 7]]
    assert wrong_element("", "table", constant(-1), lambda _: -1).change(GIVEN).table[1, 3] == -1
    assert wrong_element("", "inner.none", constant(-1)).change(GIVEN) is None
    assert wrong_element("", "table", constant(-1), lambda _: None).change(GIVEN) is None
    assert wrong_element("", "table", lambda _: None).change(GIVEN) is None
    assert GIVEN.table.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert with_field(GIVEN, "inner.none", GIVEN.table).inner.none is GIVEN.table


@pytest.mark.parametrize(("read", "place"), [([0, 9], (1, 2)), ([4, 1], (0, 0)), ([0, 0], None), ([17, 5], (1, 1))])
def test_the_last_page_that_is_read_is_the_wrong_one(read, place):
    assert place_of_last_page("table", lambda _: 4, lambda _: read)(GIVEN) == place


def test_tensors_are_of_another_dtype_or_shape(monkeypatch):
    found = {kind.what: changed for kind, changed in illegal_inputs((), GIVEN)}
    assert found["inner.rows of another dtype"].inner.rows.dtype == torch.float64
    assert found["table of another dtype"].table.dtype == torch.float32
    assert found["table with an axis more"].table.shape == (1, 2, 4)
    assert found["inner.rows with a row less"].inner.rows.shape == (2, 2)
    assert len(found) == 6
    monkeypatch.setattr(illegal, "MOST_OF_TENSORS", 3)
    assert [kind.what for kind, _ in illegal_inputs((), GIVEN)] == [
        "inner.rows of another dtype", "table with an axis more", "inner.rows with an axis more"
    ]  # fmt: skip


def test_what_inputs_themselves_refuse_is_not_given():
    def refuses(inputs):
        raise ValueError("no such inputs")

    found = [kind.what for kind, _ in illegal_inputs((Illegal("x", refuses), Illegal("y", lambda _: None)), GIVEN)]
    assert not {"x", "y"} & set(found)


def test_a_case_of_which_nothing_can_be_illegal_says_nothing(subject, toy, monkeypatch):
    monkeypatch.setattr("npudiff.judge.illegal.illegal_inputs", lambda kinds, inputs: iter(()))
    with pytest.raises(NotApplicable, match="no illegal inputs"):
        ILLEGAL_IS_REFUSED.check(subject(lambda inputs, target: inputs.x * 2), toy.Case((3, 4)))


def test_calls_that_cannot_be_made_refuse_nothing(subject, toy):
    def unable(inputs, target):
        raise NoZones("no zones")

    def plain(inputs, target):
        return inputs.x * 2

    there = subject(plain)
    elsewhere = replace(there.implementation, function=unable)
    item = replace(
        there.implementation, elsewhere_in_red_zones=lambda fill: elsewhere if fill else there.implementation
    )
    with pytest.raises(NotApplicable, match="no illegal inputs"):
        ILLEGAL_IS_REFUSED.check(replace(there, implementation=item), toy.Case((3, 4)))


TAKEN = {
    "a negative length", "a negative number of new tokens",  # attention reads no key then
    "a negative position", "a negative number of real rows",  # and Python counts from the end
}  # fmt: skip
"""What references do not look at. It has no right answer all the same."""


@pytest.mark.few(14)
@pytest.mark.parametrize("name", [name for name in component_names() if load_component(name).illegal])
def test_what_a_component_says_is_illegal_can_be_and_its_reference_refuses_it(name):
    component = load_component(name)
    seen = Counter()

    @seed(1)
    @settings(max_examples=12, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(component.strategy(Constraints()))
    def look(case):
        inputs = component.inputs(case)
        for kind in component.illegal:
            changed = kind.change(inputs)
            if changed is not None:
                seen[kind.what] += 1
                try:
                    component.reference(changed)
                except Exception:  # noqa: BLE001, S112 - any
                    continue
                assert kind.what in TAKEN

    look()
    assert set(seen) == {kind.what for kind in component.illegal}


KERNEL = """
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", checks=True)
def mine(inputs, target):
    CHECK
    return window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)
"""
CHECK = """lengths = inputs.kv_lengths
    if lengths.is_floating_point() or lengths.dim() > 2 or lengths.min() < 0 or lengths.max() > inputs.capacity:
        raise ValueError("lengths")"""


@pytest.mark.parametrize("more", [(), pytest.param(("--untrusted",), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("check", "code"), [(CHECK, 0), (CHECK.replace("< 0", "< -1"), 1), ("pass", 1)])
def test_a_kernel_of_a_file_that_says_it_checks(cli, tmp_path, more, check, code):
    (tmp_path / "mine.py").write_text(KERNEL.replace("CHECK", check))
    arguments = ("check", "swa_mask", "--impl", "mine.py", "--target", "sim", "--examples", 20, "--workers", 1, *more)
    result = cli(*arguments)
    assert result.code == code, result.out + result.err
    if code:
        assert "FINDING swa_mask.mine · illegal_is_refused · wrong value" in result.out
        assert "given illegal inputs: a negative length, a length beyond" in result.out or check != "pass"
        assert "an answer, given a negative length" in result.out or check == "pass"
        assert cli("replay", ".npudiff/findings", "--impl", "mine.py", *more).code == 1
