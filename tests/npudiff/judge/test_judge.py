"""The steps of a trace on a live object: each is taken once, and the worst comparison is what they come to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from npudiff.judge.judge import LocalJudge, TraceExecutor
from npudiff.model.component import Comparison, History, OutputComparison


@dataclass(frozen=True)
class Trace:
    steps: tuple[float, ...]


class Session:
    """Each step is a number, and the ratio that its comparison has."""

    def __init__(self):
        self.taken = []

    def take(self, step):
        self.taken.append(step)
        return Comparison((OutputComparison("y", ratio=torch.tensor([step], dtype=torch.float64)),))


@pytest.fixture
def sessions(toy):
    opened = []

    def session(subject, case):
        assert case.steps == ()
        opened.append(Session())
        return opened[-1]

    history = History(machine=None, session=session)
    job = toy.job(history=history, relations=())
    return job, opened


def test_the_largest_ratio_of_the_steps_that_were_taken_now_counts(sessions):
    job, opened = sessions
    executor = TraceExecutor(job.subject)
    assert executor.run_to(Trace((0.5, 0.25))).worst == 0.5
    assert executor.run_to(Trace((0.5, 0.25, 0.125, 0.75, 0.375))).worst == 0.75
    assert executor.run_to(Trace((0.5, 0.25, 0.125, 0.75, 0.375))).worst == 0
    assert [one.taken for one in opened] == [[0.5, 0.25, 0.125, 0.75, 0.375]]


def test_after_a_step_that_fails_none_is_taken(sessions):
    job, opened = sessions
    executor = TraceExecutor(job.subject)
    assert executor.run_to(Trace((0.5, 2.0, 3.0))).worst == 2
    assert executor.case == Trace((0.5, 2.0))
    assert opened[0].taken == [0.5, 2.0]


def test_a_trace_that_begins_anew_has_an_object_of_its_own(sessions):
    job, opened = sessions
    judge = LocalJudge(job)
    assert judge.check(Trace((0.5,))).worst == 0.5
    judge.begin()
    assert judge.check(Trace((0.25, 4.0, 1.0))).worst == 4
    assert judge.case == Trace((0.25, 4.0))
    assert [one.taken for one in opened] == [[0.5], [0.25, 4.0]]


def test_without_a_history_there_are_no_steps(toy):
    with pytest.raises(ValueError, match="toy has no history"):
        TraceExecutor(toy.job().subject).run_to(Trace(()))
    assert LocalJudge(toy.job()).check(replace(toy.Case((1,)), kind="odd")).holds
