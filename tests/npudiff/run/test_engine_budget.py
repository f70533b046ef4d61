"""How long the engine looks, which cases it draws, and what it remembers."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import replace

import pytest

from npudiff.model.job import Budget, Verdict
from npudiff.run.engine import run_job

SEEDED = Budget(examples=100, seed=1)


def recorded(toy, **changes):
    """Return a job that keeps the numbers of every case it runs, and the list of them."""
    seen = []

    def function(inputs, target):
        seen.append(tuple(inputs.x.tolist()))
        return toy.double(inputs)

    return toy.job(function, **changes), seen


def test_a_budget_of_seconds_stops(toy):
    def slow(inputs, target):
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass
        return toy.double(inputs)

    run_job(toy.job(), replace(SEEDED, examples=1))  # what is imported for the first case
    started = time.perf_counter()
    outcome = run_job(toy.job(slow), Budget(examples=None, seconds=0.3))
    assert 0.25 < time.perf_counter() - started < 10  # a thousand cases would take as long
    assert 2 <= outcome.cases <= 30
    assert outcome.verdict is Verdict.HOLDS


def test_a_common_end_stops_every_job_that_has_it(toy):
    run_job(toy.job(), replace(SEEDED, examples=1))  # what is imported for the first case
    until = time.monotonic() + 1.0
    first = run_job(toy.job(), Budget(examples=None, until=until))
    assert first.cases > 0
    assert until <= time.monotonic() < until + 5
    assert run_job(toy.job(), Budget(examples=None, until=until)).cases == 0


@pytest.mark.slow
def test_a_budget_of_seconds_runs_more_than_the_default_number_of_cases(toy):
    run_job(toy.job(), replace(SEEDED, examples=1))  # what is imported for the first case
    assert run_job(toy.job(), Budget(examples=None, seconds=2.0)).cases > 100


def test_a_finding_within_a_budget_of_seconds_is_still_shrunk(toy):
    budget = Budget(examples=None, seconds=2.0, seed=3)
    assert run_job(toy.job(toy.wrong_above(100)), budget).failure.case == toy.Case((101,))


def test_shrinking_ends_after_its_time(toy, monkeypatch):
    monkeypatch.setattr("npudiff.run.engine.SHRINK_SECONDS", 0.0)
    outcome = run_job(toy.job(toy.wrong_above(100)), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == outcome.first_failure.case


def test_a_failing_case_is_made_smaller_in_so_many_tries(toy):
    wrong, tried = toy.wrong_above(100), {}
    for most in (0, 4, None):
        seen = []
        job = toy.job(lambda inputs, target, seen=seen: seen.append(1) or wrong(inputs, target))
        outcome = run_job(job, replace(SEEDED, smaller=most))
        assert outcome.verdict is Verdict.WRONG
        tried[most] = len(seen) - outcome.cases - outcome.repeated[1]
    assert tried[0] == 0
    assert tried[4] == 4 < tried[None]


def test_the_same_seed_gives_the_same_cases_and_another_seed_others(toy):
    drawn = {}
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        job, drawn[name] = recorded(toy)
        run_job(job, Budget(seed=seed, deterministic=False))
    assert drawn["one"] == drawn["two"] != drawn["other"]


@pytest.mark.parametrize(("budget", "first"), [(Budget(seed=7), 100), (Budget(deterministic=True), 102)])
def test_the_cases_do_not_depend_on_what_else_is_imported(toy, tmp_path, monkeypatch, budget, first):
    drawn = []
    for start in (first, first + 1):
        # Hypothesis collects numbers from modules outside site-packages, and a user's kernel file is one.
        path = tmp_path / f"npudiff_test_numbers_{start}.py"
        path.write_text(f"NUMBERS = {list(range(start, 2000, 7))}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, path.stem, importlib.import_module(path.stem))
        job, seen = recorded(toy)
        run_job(job, budget)
        drawn.append(seen)
    assert drawn[0] == drawn[1]


def test_a_deterministic_run_draws_the_same_cases_every_time_and_remembers_nothing(toy, tmp_path):
    drawn = []
    for function in (toy.double, toy.wrong_above(100)):
        seen = []

        def watched(inputs, target, function=function, seen=seen):
            seen.append(tuple(inputs.x.tolist()))
            return function(inputs) if function is toy.double else function(inputs, target)

        outcome = run_job(toy.job(watched), Budget(deterministic=True, example_database=tmp_path))
        drawn.append(seen[: outcome.cases])
    assert drawn[1] == drawn[0][: len(drawn[1])]
    assert outcome.failure is not None
    assert not outcome.remembered
    assert list(tmp_path.iterdir()) == []


def test_a_free_run_draws_other_cases_every_time(toy):
    drawn = []
    for _ in range(2):
        job, seen = recorded(toy)
        run_job(job, Budget(deterministic=False))
        drawn.append(seen)
    assert drawn[0] != drawn[1]


def test_failures_are_remembered_and_tried_first(toy, tmp_path):
    budget = Budget(deterministic=False, example_database=tmp_path)
    first = run_job(toy.job(toy.wrong_above(990)), replace(budget, examples=2000))
    assert first.failure.case == toy.Case((991,))
    assert not first.remembered
    again = run_job(toy.job(toy.wrong_above(990)), budget)
    assert again.remembered
    assert again.cases == 1
    assert again.failure.case == toy.Case((991,))
    assert again.first_failure.case == again.failure.case


def test_a_remembered_failure_that_is_fixed_is_tried_first_and_holds(toy, tmp_path):
    budget = Budget(deterministic=False, example_database=tmp_path, examples=20)
    run_job(toy.job(toy.wrong_above(100)), budget)
    job, seen = recorded(toy)
    assert run_job(job, budget).verdict is Verdict.HOLDS
    assert seen[0] == (101.0,)
    assert len(seen) >= 20


def test_memories_of_two_properties_are_apart(toy, tmp_path):
    budget = Budget(deterministic=False, example_database=tmp_path)
    run_job(toy.job(toy.wrong_above(100)), budget)
    assert not run_job(toy.job(prop=toy.REPEATS), budget).remembered
