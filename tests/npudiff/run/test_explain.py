"""What other ways of a backend make of a failing case, in words; and that a relation has no region of its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from npudiff.judge.others import WAYS_AGREE
from npudiff.model.component import Comparison
from npudiff.model.job import Budget
from npudiff.run.engine import run_job
from npudiff.run.explain import explain, judges_here
from npudiff.run.further import further
from npudiff.run.messages import Task
from npudiff.run.plan import Request as RunRequest
from npudiff.run.plan import make_plan

BUDGET = Budget(examples=20, seed=0)


def wrong(by):
    return lambda inputs, target: inputs.x * 2 + by


def raising(text):
    def function(inputs, target):
        raise ValueError(text)

    return function


def explained(toy, mine, other, prop=None):
    """Run a toy that fails, beside another way; return the outcome."""
    job = toy.job(mine) if prop is None else toy.job(mine, prop=prop)
    way = replace(job.subject.implementation, name="other", function=other)
    item = replace(job.subject.implementation, others=(way,))
    job = replace(job, subject=replace(job.subject, implementation=item))
    outcome = run_job(job, BUDGET)
    assert outcome.failure is not None
    explain(outcome, judges_here)
    return outcome


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        (wrong(64), wrong(0), "holds"),
        (wrong(64), wrong(64), "fails in the same way"),
        (wrong(64), wrong(-640), "fails otherwise"),
        (raising("no"), raising("no"), "fails in the same way"),
        (raising("no"), raising("other"), "raises"),
        (wrong(64), raising("other"), "raises"),
    ],
)
def test_another_way_holds_or_is_wrong_alike_or_otherwise(toy, mine, other, said):
    assert explained(toy, mine, other).others["other"].startswith(said)


def test_another_way_that_raises_is_its_own_matter(toy):
    job = toy.job()
    way = replace(job.subject.implementation, name="other", function=raising("other"))
    right = replace(way, name="right", function=wrong(0))
    subject = replace(job.subject, implementation=replace(job.subject.implementation, others=(way, right)))
    found = WAYS_AGREE.check(subject, toy.Case((3,)))
    assert isinstance(found, Comparison)
    assert found.holds


def test_only_equivalence_has_a_region(toy):
    odd = lambda inputs, target: inputs.x * 2 + (64 if inputs.kind == "odd" else 0)  # noqa: E731
    assert explained(toy, odd, wrong(0)).region == {"kind": ["odd"]}
    assert explained(toy, odd, wrong(0), prop=WAYS_AGREE).region == {}


def test_looking_further_is_for_what_failed_and_outside_of_what_equivalence_fails_on(toy):
    def task(job):
        return Task(job, BUDGET, lambda outcome: [])

    wrong_if_odd = lambda inputs, target: inputs.x * 2 + (64 if inputs.kind == "odd" else 0)  # noqa: E731
    equivalence = explained(toy, wrong_if_odd, wrong(0))
    relation = explained(toy, wrong_if_odd, wrong(0), prop=WAYS_AGREE)
    held = run_job(toy.job(prop=toy.REPEATS), BUDGET)
    ended = [SimpleNamespace(outcome=one) for one in (equivalence, relation, held)]
    again = further(ended, [task(one.job) for one in (equivalence, relation, held)])
    assert [one.job.prop for one in again] == [equivalence.job.prop, WAYS_AGREE]
    assert [box["kind"] for one in again for box in one.job.constraints.boxes] == [("plain",)] * 2


def test_what_holds_by_the_chance_of_its_data_is_no_region(monkeypatch):
    """A kernel that is wrong for half of all data holds under other values of axes now and then."""
    job = make_plan(RunRequest(("rms_norm",), ("native_rms_norm",), "sim")).jobs[0]
    right = job.subject.implementation.function

    def wrong_by_half(inputs, target):
        odd = int(inputs.hidden.contiguous().view(torch.uint8).sum()) % 2
        return {name: one * (2 if odd else 1) for name, one in right(inputs, target).items()}

    item = replace(job.subject.implementation, function=wrong_by_half)
    outcome = run_job(replace(job, subject=replace(job.subject, implementation=item)), BUDGET)
    regions = []
    for more in (0, 8):
        monkeypatch.setattr("npudiff.run.explain.MORE_DATA", more)
        explain(outcome, judges_here)
        regions.append(outcome.region)
    assert regions[0]
    assert regions[1] == {}
