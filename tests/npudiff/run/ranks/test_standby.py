"""Ranks of a process that has used its device: another one makes them, which was forked before."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from draws import drawn
from npudiff.judge.compare import compare
from npudiff.model.component import ImplementationRaised, NotApplicable, Subject
from npudiff.model.constraints import Constraints
from npudiff.run import ranks as run_ranks
from npudiff.run.discovery import built_in_implementations, load_component, load_target
from npudiff.run.ranks.standby import Standby


@pytest.fixture
def standby(ranked):
    """A process that stands by on the host, and ``subject(function)`` of what is installed there."""
    made = []

    def begun(function):
        subject = ranked.subject(function)
        target = subject.target.on_ranks.without
        made.append(Standby(target, 4.0, lambda: [subject.implementation], lambda name: subject.component))
        return made[0], subject

    yield begun
    for one in made:
        one.kill()


def test_a_call_that_nobody_waits_for_is_no_answer_to_the_next(ranked, standby):
    other, subject = standby(ranked.total)
    other.begin(subject, ranked.inputs(2))
    assert other.begin(subject, ranked.Rows(torch.full((2, 1), 4.0)))()["total"].tolist() == [[8.0], [8.0]]


def test_what_ranks_raise_is_told_and_the_next_call_is_judged(ranked, standby):
    def sometimes(part, target):
        if float(part.rows.max()) > 100:
            os._exit(3)
        return ranked.total(part, target)

    other, subject = standby(sometimes)
    with pytest.raises(ImplementationRaised, match="rank 0 of 2: the process ended: exit code 3"):
        other.begin(subject, ranked.Rows(torch.full((2, 1), 200.0)))()
    assert other.begin(subject, ranked.Rows(torch.full((2, 1), 4.0)))()["total"].tolist() == [[8.0], [8.0]]


def test_one_that_is_gone_is_asked_nothing(ranked, standby, monkeypatch):
    other, subject = standby(ranked.total)
    os.kill(other._pid, signal.SIGKILL)
    with pytest.raises(ImplementationRaised, match="SIGKILL"):
        other.begin(subject, ranked.inputs(2))()
    monkeypatch.setitem(run_ranks._standing_by, os.getpid(), other)
    late = run_ranks.LateRanks(subject.target, 4.0, lambda: [subject.implementation], None)
    with pytest.raises(NotApplicable, match="run it by itself"):
        late._by_another(subject, ranked.inputs(2))


@pytest.mark.virtual
def test_what_is_installed_runs_on_ranks_after_the_device_was_used_and_nothing_else_does(ranked):
    target = load_target("virtual", None)
    item = next(one for one in built_in_implementations() if one.component == "data_parallel_gather" and not one.wrong)
    component = load_component("data_parallel_gather")
    with target.activate():
        assert float(torch.ones(2).to(target.device).sum()) == 2.0
        assert run_ranks._has_used(target)
        for case in drawn(component, item.constraints.within(Constraints()), 3):
            inputs = component.inputs(case)
            subject = Subject(component, item, target)
            assert compare(subject.expected(inputs), subject.run(inputs)).holds
        with pytest.raises(NotApplicable, match="a process that has used its device: run it by itself"):
            ranked.subject(target=target).run(ranked.inputs(2))
