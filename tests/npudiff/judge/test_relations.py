"""A relation that is a transformation: it holds for a right kernel, and sees one that breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npudiff.device import targets
from npudiff.judge.relations import Changed, relation, rows_taken, tokens_do_not_mix
from npudiff.model.component import NotApplicable, Subject
from npudiff.model.implementation import Implementation
from npudiff.properties.rms_norm import RmsNormCase, component
from npudiff.reference.rms_norm import rms_norm

CASE = RmsNormCase(6, 8, residual=True, seed=3)


def subject(change=lambda inputs, outputs: outputs):
    def kernel(inputs, target):
        found = {name: one.value.to(one.dtype) for name, one in rms_norm(inputs).items()}
        return change(inputs, found)

    item = Implementation("rms_norm", "mine", kernel)
    return Subject(component, item, targets.sim(None))


def by_place(inputs, outputs):
    """A kernel whose second row is wrong, whatever is in it."""
    outputs["output"][1] += 1
    return outputs


def test_the_order_of_tokens_is_seen_where_it_matters():
    order = tokens_do_not_mix("hidden", "residual")
    assert order.within == {"tokens": range(2, 2**17 + 1)}
    assert order.check(subject(), CASE).holds
    comparison = order.check(subject(by_place), CASE)
    assert not comparison.holds
    assert comparison.context == "the order of tokens does not matter"


@pytest.mark.parametrize("bits", [False, True])
def test_changed_inputs_give_the_same_where_nothing_else_is_said(bits):
    same = relation("same", "the same twice", lambda inputs, case: replace(inputs, epsilon=inputs.epsilon), bits=bits)
    assert same.check(subject(), CASE).holds
    calls = iter(range(2))
    assert not same.check(subject(lambda i, o: {"output": o["output"] + next(calls)}), CASE).holds


def test_outputs_change_as_it_says_and_a_part_may_be_compared():
    first = relation("first", "alone", lambda inputs, case: Changed(
        replace(inputs, hidden=inputs.hidden[:1], residual=inputs.residual[:1]), rows_taken(slice(1))))  # fmt: skip
    assert first.check(subject(), CASE).holds
    assert not first.check(subject(lambda i, o: {"output": o["output"] + len(i.hidden)}), CASE).holds
    part = relation("part", "the first of all", lambda inputs, case: Changed(
        inputs, rows_taken(slice(1)), rows_taken(slice(1))))  # fmt: skip
    assert part.check(subject(by_place), CASE).holds


def test_what_is_not_supported_is_not_applicable():
    other = relation("other", "wider", lambda inputs, case: Changed(inputs, case=(None, replace(case, hidden_size=16))))
    assert other.check(subject(), CASE).holds
    narrow = replace(
        subject().implementation, constraints=subject().implementation.constraints.of({"hidden_size": (8,)})
    )
    with pytest.raises(NotApplicable, match="wider: hidden_size 16 is not in"):
        other.check(replace(subject(), implementation=narrow), CASE)


def test_the_run_before_may_be_on_other_inputs():
    doubled = relation("before", "of other inputs", lambda inputs, case: Changed(
        inputs, before=replace(inputs, hidden=inputs.hidden.flip(0), residual=inputs.residual.flip(0))))  # fmt: skip
    assert not doubled.check(subject(), CASE).holds


@pytest.mark.parametrize("bits", [False, True])
def test_a_difference_within_the_bounds_is_one_where_bits_are_compared(bits):
    same = relation("same", "the same twice", lambda inputs, case: inputs, bits=bits)
    calls = iter(range(2))
    case = replace(CASE, dtype="float32")
    near = subject(lambda i, o: {"output": o["output"] * (1 + next(calls) * 2**-22)})
    assert same.check(near, case).holds is not bits
