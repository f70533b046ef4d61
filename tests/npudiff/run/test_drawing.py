"""How the cases of a job are drawn: without Hypothesis as long as none fails and there are others."""

from __future__ import annotations

import time

from hypothesis.internal.conjecture.engine import ConjectureRunner

from npudiff.model.job import Budget, Verdict
from npudiff.run import drawing
from npudiff.run.drawing import MOST_LEFT
from npudiff.run.engine import run_job

THREE = {"count": (1,), "number": (3, 4, 5), "kind": ("plain",)}


def run_of_three(toy, budget, function=None):
    return run_job(toy.job(*([] if function is None else [function]), supports=THREE), budget)


def without_hypothesis(monkeypatch):
    def run(self):
        raise AssertionError("Hypothesis was asked")

    monkeypatch.setattr(ConjectureRunner, "run", run)


def test_hypothesis_is_not_asked_as_long_as_cases_hold(toy, monkeypatch):
    without_hypothesis(monkeypatch)
    assert run_job(toy.job(), Budget(examples=50, seed=1)).cases == 50


def test_hypothesis_is_not_asked_for_a_failure_that_is_left_as_it_is(toy, monkeypatch):
    without_hypothesis(monkeypatch)
    assert run_job(toy.job(toy.wrong_above(300)), Budget(seed=1, shrink=False)).verdict is Verdict.WRONG


def test_every_case_of_a_small_region_is_judged_once(toy):
    outcome = run_of_three(toy, Budget(examples=100, seed=1))
    assert (outcome.verdict, outcome.cases) == (Verdict.HOLDS, 3)


def test_a_small_region_ends_a_run_that_has_only_a_time(toy):
    start = time.perf_counter()
    outcome = run_of_three(toy, Budget(examples=None, seconds=60, seed=1))
    assert (outcome.verdict, outcome.cases) == (Verdict.HOLDS, 3)
    assert time.perf_counter() - start < 20


def test_hypothesis_looks_for_what_chance_does_not_find(toy, monkeypatch):
    """Of a thousand numbers it draws one that is left when all others were drawn: here none was drawn but the first."""
    monkeypatch.setattr(drawing, "drawn", lambda draw, seed: iter(()))
    outcome = run_of_three(toy, Budget(examples=100, seed=1))
    assert outcome.cases == 3
    assert MOST_LEFT > 100


def test_what_only_hypothesis_finds_is_shrunk(toy, monkeypatch):
    monkeypatch.setattr(drawing, "drawn", lambda draw, seed: iter(()))
    outcome = run_of_three(toy, Budget(examples=100, seed=1), toy.wrong_above(3))
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case.numbers == (4,)
    assert outcome.repeated == (3, 3)


def test_a_failure_is_shrunk_from_the_case_that_failed(toy):
    outcome = run_job(toy.job(toy.wrong_above(300)), Budget(seed=1))
    assert outcome.first_failure.case.numbers != (301,)
    assert outcome.failure.case.numbers == (301,)
