"""A kernel that is wrong for one number of a million: plain draws do not find it, its branches lead there."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from npudiff.model.job import Budget, Isolation
from npudiff.run.engine import run_job
from npudiff.run.guidance import BranchWatch, Guide, can_be_guided
from npudiff.run.messages import Task, outcome_from_message, outcome_to_message
from npudiff.run.workers import TaskRunner


def wrong_in_a_corner(inputs, target):
    numbers = inputs.x.int().tolist()
    odd_three = inputs.kind == "odd" and len(numbers) == 3
    if odd_three and numbers[0] % 16 == 1 and numbers[1] % 16 == 2 and numbers[2] % 16 == 3:
        return inputs.x
    return inputs.x * 2


NEAR = '{"numbers":[17,2,4],"kind":"odd"}'
"""A case that lacks one step."""


@pytest.fixture
def corner(toy):
    return toy.job(wrong_in_a_corner)


def plain_cases(toy, seed, count):
    """Cases as the toy draws them, in a thousandth of the time."""
    choose = random.Random(seed)  # noqa: S311 - any cases will do
    for _ in range(count):
        numbers = tuple(choose.randrange(1001) for _ in range(choose.randint(1, 4)))
        yield toy.Case(numbers, choose.choice(("plain", "odd")))


@pytest.mark.slow
def test_branches_lead_where_plain_draws_come_late(corner, toy):
    """One of 32,768 plain draws is there."""
    needed = []
    for seed in range(3):
        guide = Guide(corner, seed)
        judged = guide.job.subject.implementation.function
        for number, case in enumerate(guide.cases(list(plain_cases(toy, seed, 20_000))), 1):
            inputs = corner.subject.component.inputs(case)
            if judged(inputs, None) is inputs.x:
                needed.append(number)
                break
    assert len(needed) == 3
    assert statistics.median(needed) < 0.5 * 32_768 * math.log(2)


@pytest.mark.slow
def test_what_it_finds_is_made_smaller_field_by_field_and_told_as_any_failure(corner):
    budgets = (Budget(examples=600, seed=seed, guided=True, corpus=(NEAR,)) for seed in range(9))
    outcome = next(one for one in (run_job(corner, budget) for budget in budgets) if one.failure is not None)
    case = outcome.failure.case
    assert (case.kind, [number % 16 for number in case.numbers]) == ("odd", [1, 2, 3])
    assert outcome.repeated == (3, 3)
    told, _ = outcome_from_message(corner, outcome_to_message(outcome, []))
    assert told.guides == outcome.guides
    assert outcome.guides


def test_a_corpus_is_where_the_next_round_goes_on(corner, toy):
    outcome = run_job(corner, Budget(examples=20, seed=1, guided=True, corpus=(NEAR, '{"of":"another version"}')))
    assert toy.Case((17, 2, 4), "odd") not in outcome.guides  # it was known
    assert outcome.cases > 20


def test_in_a_process_of_its_own_it_is_the_same(corner):
    budget = Budget(examples=60, fallback_seed=2, deterministic=False, guided=True)
    here = run_job(corner, budget)
    task = Task(corner, Budget(**{**vars(budget), "isolation": Isolation()}), None)
    runner = TaskRunner([task])
    try:
        there, _ = runner.run(0)
    finally:
        runner.close()
    assert (there.cases, there.guides) == (here.cases, here.guides)
    assert there.guides


def test_only_a_function_of_a_user_is_followed(corner, toy):
    assert can_be_guided(corner)
    assert not can_be_guided(toy.job(prop=toy.REPEATS))
    assert not can_be_guided(toy.job(torch.relu))


def test_branches_within_a_condition_are_seen_and_other_files_are_not(toy):
    job = toy.job(wrong_in_a_corner)
    watch = BranchWatch(wrong_in_a_corner.__code__.co_filename)
    seen = []
    for numbers, kind in (((1,), "plain"), ((1,), "odd"), ((1, 2, 3), "odd"), ((17, 1, 3), "odd"), ((17, 2, 4), "odd")):
        inputs = job.subject.component.inputs(toy.Case(numbers, kind))
        with watch:
            wrong_in_a_corner(inputs, None)
        seen.append(len(watch.taken))
    assert seen == sorted(set(seen))  # each case has taken more than those before it
    assert {code for code, _, _ in watch.taken} == {wrong_in_a_corner.__code__}


def test_mutations_are_legal(corner, toy):
    guide = Guide(corner, 3)
    for case in guide.cases(list(plain_cases(toy, 1, 300))):
        corner.subject.component.check_case(case)
        guide.job.subject.run(corner.subject.component.inputs(case))
