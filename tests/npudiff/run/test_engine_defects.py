"""Defects of a component, and interruption: they propagate and never look like a verdict."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from npudiff.model.component import Property
from npudiff.model.job import Budget, Verdict
from npudiff.run.engine import run_job

SEEDED = Budget(examples=100, seed=1)


def boom(*_):
    raise LookupError("my own defect")


@pytest.mark.parametrize("part", ["reference", "inputs", "values", "features", "strategy"])
def test_exceptions_of_the_component_are_no_findings(toy, part):
    with pytest.raises(LookupError, match="my own defect"):
        run_job(toy.job(**{part: boom}), SEEDED)


def test_an_exception_of_a_relation_itself_is_no_finding(toy):
    with pytest.raises(LookupError, match="my own defect"):
        run_job(toy.job(prop=Property("broken", "", boom)), SEEDED)


def test_a_reference_that_fails_late_is_no_finding_either(toy):
    calls = []

    def reference(inputs):
        calls.append(1)
        return boom() if len(calls) > 30 else toy.component.reference(inputs)

    with pytest.raises(LookupError):
        run_job(toy.job(reference=reference), SEEDED)


def test_a_strategy_that_draws_something_else_each_time_does_not_look_clean(toy):
    calls = []

    @st.composite
    def moody(draw):
        calls.append(1)
        return toy.Case((draw(st.integers(0, 9)) if len(calls) % 2 else int(draw(st.booleans())),))

    with contextlib.suppress(Flaky):  # it may propagate, as a defect of the component
        assert run_job(toy.job(strategy=lambda constraints: moody()), SEEDED).verdict is not Verdict.HOLDS


def test_interruption_propagates(toy):
    def function(inputs, target):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(toy.job(function), SEEDED)
