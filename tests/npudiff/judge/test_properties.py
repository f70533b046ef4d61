"""Calls before and after a case: what they find of implementations that keep something, and what is no finding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import npudiff
from npudiff.judge import judge
from npudiff.judge.judge import CALL_INDEPENDENCE, EQUIVALENCE, properties_of
from npudiff.judge.memory import STAYS_WITHIN
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.model.job import Budget, Job, Verdict
from npudiff.run.discovery import load_component
from npudiff.run.engine import run_case, run_job

FEW = Budget(examples=5, seed=1)


def captured(toy):
    """Keep the numbers of the first call with as many."""
    graphs = {}

    def function(inputs, target):
        return graphs.setdefault(len(inputs.x), toy.double(inputs)).clone()

    return function


def too_small(toy):
    """Keep a workspace for as many numbers as the first call has."""
    workspace = []

    def function(inputs, target):
        workspace.append(len(inputs.x))
        if len(inputs.x) > workspace[0]:
            raise RuntimeError("the workspace is too small")
        return toy.double(inputs)

    return function


def stale_end(toy):
    """Leave the last number as a longer call has written it."""
    longest = []

    def function(inputs, target):
        result = toy.double(inputs)
        if longest and len(longest[0]) > len(result):
            result[-1] = longest[0][len(result) - 1] + 1
        else:
            longest[:] = [toy.double(inputs)]
        return result

    return function


def reused(toy):
    """Return the same memory for each call, which is right until the next one."""
    memory = torch.zeros(1000)

    def function(inputs, target):
        memory[: len(inputs.x)] = toy.double(inputs)
        return memory[: len(inputs.x)]

    return function


def held(toy):
    """Keep numbers as a graph's input that is only written where they grow."""
    largest = {}

    def function(inputs, target):
        count = len(inputs.x)
        largest[count] = torch.maximum(largest.get(count, inputs.x), inputs.x)
        return toy.double(replace(inputs, x=largest[count]))

    return function


KINDS = {"captured": captured, "too_small": too_small, "stale_end": stale_end, "held": held}


def kept(toy, opens, prop):
    """The job of an implementation that says that it keeps something."""
    item = npudiff.implementation("toy", name="mine", stateful=True)(lambda: opens(toy))
    plain = toy.job(prop=prop)
    return Job(replace(plain.subject, implementation=item), prop, Constraints())


def test_a_right_implementation_holds(toy):
    outcome = run_job(toy.job(prop=CALL_INDEPENDENCE), FEW)
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.cases == 5


@pytest.mark.parametrize("name", KINDS)
def test_what_is_kept_between_calls_is_found_although_each_call_is_right_by_itself(toy, name):
    assert run_job(kept(toy, KINDS[name], EQUIVALENCE), FEW).failure is None
    outcome = run_job(kept(toy, KINDS[name], CALL_INDEPENDENCE), FEW)
    assert outcome.failure is not None
    assert not outcome.flaky
    assert run_case(kept(toy, KINDS[name], CALL_INDEPENDENCE), outcome.failure.case).failure is not None


def test_a_plain_function_that_keeps_what_the_call_before_left_fails_in_a_process_of_its_own(toy):
    failed = run_job(toy.job(stale_end(toy), prop=CALL_INDEPENDENCE), FEW).failure
    assert failed is not None
    assert run_case(toy.job(stale_end(toy), prop=CALL_INDEPENDENCE), failed.case).failure is not None


def test_what_a_plain_function_captured_shows_in_the_next_case(toy):
    assert run_job(toy.job(captured(toy)), Budget(examples=100, seed=1)).failure is not None


def test_what_is_wrong_by_itself_is_not_the_fault_of_other_calls(toy):
    assert run_job(toy.job(toy.wrong_above(0), prop=CALL_INDEPENDENCE), FEW).verdict is Verdict.HOLDS


def test_the_finding_says_after_which_call(toy):
    case = toy.Case((6, 8))
    first = run_case(kept(toy, captured, CALL_INDEPENDENCE), case).failure.comparison
    assert first.context == "the same inputs alone, and after 3 4"
    second = run_case(kept(toy, stale_end, CALL_INDEPENDENCE), case).failure.comparison
    assert second.context == "the same inputs alone, and after 6 8 6"


def test_memory_that_the_next_call_uses_again_is_no_finding(toy):
    assert run_job(kept(toy, reused, CALL_INDEPENDENCE), FEW).verdict is Verdict.HOLDS
    assert run_job(toy.job(reused(toy), prop=CALL_INDEPENDENCE), FEW).verdict is Verdict.HOLDS


def test_memory_that_is_used_again_does_not_hide_what_changed(toy):
    memory, stale = torch.zeros(1000), stale_end(toy)

    def function(inputs, target):
        memory[: len(inputs.x)] = stale(inputs, target)
        return memory[: len(inputs.x)]

    assert run_case(toy.job(function, prop=CALL_INDEPENDENCE), toy.Case((6, 8))).failure is not None


def test_other_calls_that_raise_by_themselves_are_no_finding_of_this_case(toy):
    def only(inputs, target):
        if inputs.x.tolist() != [6, 8]:
            raise ValueError("not for me")
        return toy.double(inputs)

    assert run_case(toy.job(only, prop=CALL_INDEPENDENCE), toy.Case((6, 8))).verdict is Verdict.HOLDS


def test_calls_grow_and_shrink_on_one_object(toy):
    objects = []

    def opens(toy):
        seen = []
        objects.append(seen)

        def function(inputs, target):
            seen.append(inputs.x.tolist())
            return toy.double(inputs)

        return function

    run_case(kept(toy, opens, CALL_INDEPENDENCE), toy.Case((6, 8)))
    assert sorted(objects) == [[[6], [9, 9], [3, 4], [6, 8], [6, 8, 6], [6, 8]], [[6, 8]]]


def test_a_case_that_has_no_others_is_not_applicable(toy):
    def this_only(case):
        if case.numbers != (6,):
            raise ValueError("another")

    outcome = run_case(toy.job(prop=CALL_INDEPENDENCE, check_case=this_only), toy.Case((6,)))
    assert dict(outcome.not_applicable) == {"no other case can be derived from this one": 1}


def test_an_implementation_that_keeps_nothing_is_opened_as_itself():
    item = Implementation("toy", "mine", lambda inputs, target: None)
    assert item.fresh() is item


def test_every_call_of_one_that_keeps_something_begins_afresh_until_it_is_opened(toy):
    item = npudiff.implementation("toy", name="mine", stateful=True)(lambda: captured(toy))
    inputs = [toy.component.inputs(toy.Case((number,))) for number in (1, 2)]
    assert [float(item(one, None)) for one in inputs] == [2, 4]
    opened = item.fresh()
    assert [float(opened(one, None)) for one in inputs] == [2, 2]
    assert opened.fresh() is opened


def test_all_components_but_those_with_history_have_it(toy):
    assert properties_of(toy.component)[-2:] == (CALL_INDEPENDENCE, STAYS_WITHIN)
    assert properties_of(load_component("hybrid_pools")) == (EQUIVALENCE,)


STATEFUL = '''
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="mine", stateful=True)
def swa_mask():
    """My graph."""
    graphs = {}

    def replay(inputs, target):
        lengths = graphs.setdefault(inputs.kv_lengths.shape, inputs.kv_lengths)
        return window_mask(lengths.to(target.device), inputs.capacity, inputs.window)

    return replay
'''


@pytest.mark.slow
def test_a_finding_is_listed_written_and_replayed_as_any_other(cli, kernel, tmp_path):
    path = kernel(STATEFUL)
    shown = cli("list", "swa_mask").out
    assert f"{CALL_INDEPENDENCE.name}" in shown
    ran = cli("check", "swa_mask", "--impl", path, "--target", "sim", "--seed", "1")
    assert ran.code == 1
    assert "mine · earlier_calls_change_nothing · wrong value" in ran.out
    assert "compared   the same inputs alone, and after " in ran.out
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*mine-earlier_calls*")
    again = cli("replay", folder, "--impl", path)
    assert (again.code, "FAILED" in again.out) == (1, True)


def test_a_call_after_the_case_is_enough_where_none_can_come_before(toy, monkeypatch):
    monkeypatch.setattr(judge, "shrunk", lambda subject, case: None)
    monkeypatch.setattr(judge, "longer", lambda subject, case: ())
    monkeypatch.setattr(judge, "same_size", lambda subject, case: None)
    monkeypatch.setattr(judge, "grown", lambda subject, case: toy.Case((*case.numbers, 9)))
    subject = toy.job().subject
    assert CALL_INDEPENDENCE.check(subject, toy.Case((1,))).holds
    monkeypatch.setattr(judge, "grown", lambda subject, case: None)
    with pytest.raises(npudiff.NotApplicable, match="no other case can be derived"):
        CALL_INDEPENDENCE.check(subject, toy.Case((1,)))


def test_a_mutant_that_keeps_something_has_to_be_found_by_other_calls(toy):
    item = toy.job().subject.implementation
    assert judge.property_of_mutant(item) is EQUIVALENCE
    assert judge.property_of_mutant(replace(item, factory=lambda: item.function)) is CALL_INDEPENDENCE


def looks_up(subject, case):
    """A relation that uses an output as an index."""
    inputs = subject.component.inputs(case)
    outputs = subject.run(inputs)
    raise IndexError(f"index {int(outputs['y'][0])} is out of range")


def test_where_a_relation_cannot_be_checked_a_wrong_output_is_the_answer_and_else_it_is_a_defect(toy):
    prop = replace(toy.REPEATS, name="looks_up", check=looks_up)
    comparison = judge.check(prop, toy.job(toy.wrong_above(1)).subject, toy.Case((7,)))
    assert not comparison.holds
    assert comparison.context == "one run of looks_up"
    with pytest.raises(IndexError, match="index 14 is out of range"):
        judge.check(prop, toy.job().subject, toy.Case((7,)))
