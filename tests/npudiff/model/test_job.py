"""What a job, its budget and its outcome say of themselves: of what a run draws, remembers, reports and removes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Comparison
from npudiff.model.drift import Drift
from npudiff.model.job import Budget, Failure, Outcome, Poisoning, Verdict

SMALL = {"count": (1, 2)}
MANY = {"count": (3,)}


def test_cases_are_drawn_within_what_is_supported_and_what_the_property_says_something_of(toy):
    job = toy.job(supports=[SMALL], prop=replace(EQUIVALENCE, within={"kind": ("odd",)}))
    assert job.drawn_within.boxes == ({**SMALL, "kind": ("odd",)},)


@pytest.mark.parametrize(
    ("within", "needs", "applies"),
    [({}, {}, True), (MANY, {}, False), ({}, MANY, False), (SMALL, SMALL, True), (MANY, MANY, False)],
)
def test_a_job_applies_where_cases_and_the_other_runs_of_a_relation_are_supported(toy, within, needs, applies):
    assert toy.job(supports=[SMALL], prop=replace(EQUIVALENCE, within=within, needs=needs)).applies is applies


def test_nothing_is_left_out_unless_somebody_says_so():
    budget = Budget()
    assert budget.deterministic
    assert budget.shrink
    assert (budget.seconds, budget.until, budget.isolation) == (None, None, None)


def test_a_seed_that_is_given_comes_before_all_others(toy):
    job = toy.job()
    assert Budget(seed=0, fallback_seed=4).seed_of(job) == 0
    assert Budget(seed=0, fallback_seed=4, deterministic=False).seed_of(job) == 0
    assert Budget().seed_of(job) != Budget().seed_of(toy.job(prop=toy.REPEATS))


@pytest.mark.parametrize("folder_of", [Budget.example_database_of, Budget.shared_database_of])
def test_what_failed_is_remembered_of_each_job_where_nobody_chose_the_draws(toy, tmp_path, folder_of):
    budget = Budget(example_database=tmp_path, shared_database=tmp_path, deterministic=False)
    folders = [folder_of(budget, toy.job(prop=prop)) for prop in (EQUIVALENCE, toy.REPEATS)]
    assert len(set(folders)) == 2
    assert all(folder.parent == tmp_path for folder in folders)
    for chosen in ({"seed": 0}, {"deterministic": True}, {"example_database": None, "shared_database": None}):
        assert folder_of(replace(budget, **chosen), toy.job()) is None


DRIFT = Drift("y", "gain", 0.1, 0.01, 7.0, 60, 600)
POISONING = Poisoning("{}", "{}", "507015")
FAILURE = Failure(None, Comparison(()), None)


@pytest.mark.parametrize(("failed", "runs", "flaky"), [(3, 3, False), (2, 3, True), (0, 1, True), (0, 0, False)])
def test_what_does_not_always_fail_is_flaky(toy, failed, runs, flaky):
    assert Outcome(toy.job(), repeated=(failed, runs)).flaky is flaky


def test_what_is_measured_is_a_drift_only_where_that_is_the_verdict(toy):
    assert Outcome(toy.job(), drifts=(DRIFT,)).drift is None
    assert not Outcome(toy.job(), drifts=(DRIFT,)).found
    drifts = Outcome(toy.job(), drifts=(DRIFT,), verdict=Verdict.DRIFT)
    assert (drifts.drift, drifts.found, drifts.findings) == (DRIFT, True, 1)


@pytest.mark.parametrize(
    ("failure", "alone", "poisonings", "spoiled", "findings"),
    [
        (None, (0, 0), 0, False, 0),
        (FAILURE, (0, 0), 0, False, 1),
        (None, (0, 0), 1, False, 1),
        (None, (0, 3), 2, False, 1),
        (FAILURE, (0, 0), 1, False, 2),
        (FAILURE, (3, 3), 1, False, 2),
        (FAILURE, (1, 3), 1, False, 2),
        (FAILURE, (0, 3), 0, False, 1),
        (FAILURE, (0, 3), 1, True, 1),
        (FAILURE, (0, 3), 2, True, 1),
    ],
)
def test_a_case_is_spoiled_that_is_right_by_itself_where_another_one_is_known_to_spoil(
    toy, failure, alone, poisonings, spoiled, findings
):
    outcome = Outcome(toy.job(), failure=failure, alone=alone, poisonings=[POISONING] * poisonings)
    assert outcome.spoiled is spoiled
    assert outcome.findings == findings


def test_a_journal_is_removed_once_and_one_that_cannot_be_removed_is_left(toy, tmp_path):
    outcome = Outcome(toy.job(), journal=tmp_path / "journal")
    outcome.journal.touch()
    outcome.settle()
    assert list(tmp_path.iterdir()) == []
    assert outcome.journal is None
    outcome.settle()
    Outcome(toy.job(), journal=tmp_path).settle()  # a folder
    assert tmp_path.is_dir()
