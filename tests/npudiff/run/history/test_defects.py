"""Defects of a component with history propagate and never look like a verdict."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis.errors import Flaky
from hypothesis.stateful import rule

from npudiff.model.component import Property
from npudiff.model.constraints import Constraints
from npudiff.model.job import Verdict
from npudiff.run.engine import run_job


def boom(*_):
    raise LookupError("my own defect")


def broken(tally):
    """Changes to the component, each of which breaks one part of it."""

    class BrokenSession(tally.TallySession):
        def take(self, step):
            raise ValueError("my own defect")

    return {
        "values": {"values": boom},
        "features": {"features": boom},
        "open": {"history": replace(tally.COMPONENT.history, session=boom)},
        "opening": {"history": tally.machine(tally.TallyMachine, opening=boom)},
        "rule": {"history": tally.machine(tally.TallyMachine, add=rule()(boom))},
        "session": {"history": replace(tally.COMPONENT.history, session=BrokenSession)},
    }


@pytest.mark.parametrize("part", ["values", "features", "open", "opening", "rule", "session"])
def test_exceptions_of_the_component_are_no_findings(part, tally):
    with pytest.raises((LookupError, ValueError), match="my own defect"):
        run_job(tally.job(**broken(tally)[part]), tally.SEEDED)


@pytest.mark.parametrize("part", ["check_case", "simpler", "session"])
def test_nor_are_they_while_a_trace_is_shrunk(part, tally):
    class Late(tally.TallySession):
        def take(self, step):
            if self.numbers[0] == 0 and len(self.numbers) > 1:
                raise ValueError("my own defect")
            return super().take(step)

    changes = {
        "check_case": {"check_case": boom},
        "simpler": {"history": replace(tally.COMPONENT.history, simpler=(boom,))},
        "session": {"history": replace(tally.COMPONENT.history, session=Late)},
    }[part]
    supports = {"start": range(5, 99)} if part == "session" else None
    made = tally.job(tally.Forgets, supports=supports, **changes)
    item = replace(made.subject.implementation, constraints=Constraints())
    with pytest.raises((LookupError, ValueError), match="my own defect"):
        run_job(replace(made, subject=replace(made.subject, implementation=item)), tally.SEEDED)


def test_a_machine_that_draws_something_else_each_time_does_not_look_clean(tally):
    calls = []

    def add(self):
        calls.append(1)
        self.take(tally.Add(1 + len(calls) % 90))

    with contextlib.suppress(Flaky):  # it may propagate, as a defect of the component
        found = run_job(
            tally.job(tally.Forgets, history=tally.machine(tally.TallyMachine, add=rule()(add))), tally.SEEDED
        )
        assert found.verdict is not Verdict.HOLDS


def test_interruption_propagates(tally):
    class Interrupted(tally.Tally):
        def undo(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(tally.job(Interrupted), tally.SEEDED)


def test_a_component_with_history_has_no_relations(tally):
    with pytest.raises(ValueError, match="tally has a history, and relations need cases that are drawn whole"):
        replace(tally.COMPONENT, relations=(Property("same", "", lambda subject, case: None),))
