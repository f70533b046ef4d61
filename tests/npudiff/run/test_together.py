from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from npudiff.model.case import to_plain
from npudiff.model.component import Subject
from npudiff.model.fingerprint import fingerprint
from npudiff.model.job import Budget, Job, Verdict
from npudiff.run.engine import NO_CASE, run_job
from npudiff.run.messages import Task
from npudiff.run.plan import Request, make_plan
from npudiff.run.together import batches, planned, run_together
from npudiff.run.workers import TaskRunner, run_in_workers

BUDGET = Budget(examples=40, seed=5, together=True)
ODD, PLAIN, BOTH = {"kind": ("odd",)}, {"kind": ("plain",)}, {}


@pytest.fixture
def jobs(toy):
    """Make jobs of one component: a function and what it supports each."""

    def make(*wanted, prop=None, **changes):
        component, target = replace(toy.component, **changes), toy.job().subject.target
        made = []
        for number, (function, supports) in enumerate(wanted):
            one = toy.job(function, supports=supports)
            item = replace(one.subject.implementation, name=f"number_{number}")
            made.append(Job(Subject(component, item, target), prop or one.prop, one.constraints))
        return made

    return make


def right(inputs, target):
    return inputs.x * 2


def budgets(jobs, budget=BUDGET):
    return [budget] * len(jobs)


def test_each_is_given_as_many_cases_as_by_itself_and_none_that_it_does_not_support(jobs):
    several = jobs((right, BOTH), (right, ODD), (right, {"count": range(2, 4)}), (right, {"number": range(9)}))
    component = several[0].subject.component
    cases = planned(several, budgets(several))
    for place, job in enumerate(several):
        its = [shared.case for shared in cases if place in shared.takers]
        assert len(its) == 40
        assert all(job.constraints.reason_against(component.values(case)) is None for case in its)


def test_alike_ones_have_all_cases_in_common_and_those_of_a_part_draw_none(jobs):
    alike = jobs((right, BOTH), (right, BOTH), (right, BOTH))
    assert all(sorted(shared.takers) == [0, 1, 2] for shared in planned(alike, budgets(alike)))
    part = jobs((right, {"kind": ("odd",), "count": (1, 2, 3, 4)}), (right, BOTH))
    cases = planned(part, [replace(BUDGET, examples=3), BUDGET])
    assert len(cases) == 40
    assert all(shared.takers[0] == 1 for shared in cases)
    assert sum(0 in shared.takers for shared in cases) == 3


def test_what_no_other_draws_is_drawn(jobs):
    apart = jobs((right, ODD), (right, PLAIN))
    assert sorted(Counter(tuple(shared.takers) for shared in planned(apart, budgets(apart))).items()) == [
        ((0,), 40), ((1,), 40)
    ]  # fmt: skip


def test_where_two_overlap_a_case_of_one_stands_for_one_of_the_other_as_often_as_it_would_draw_there(jobs):
    overlapping = jobs((right, {"count": (1, 2)}), (right, {"count": (2, 3, 4)}))
    cases = planned(overlapping, budgets(overlapping))
    common = [shared for shared in cases if len(shared.takers) == 2]
    alone = planned(overlapping[1:], budgets(overlapping[1:]))
    would = sum(len(shared.case.numbers) == 2 for shared in alone)
    has = sum(len(shared.case.numbers) == 2 for shared in cases if 1 in shared.takers)
    assert 0 < len(common) <= would == has < 40


def test_a_case_is_built_and_answered_once_for_all(jobs):
    built, answered = Counter(), Counter()
    component = jobs((right, BOTH))[0].subject.component

    def inputs(case):
        built[case] += 1
        return component.inputs(case)

    def reference(inputs):
        answered["all"] += 1
        return component.reference(inputs)

    alike = jobs((right, BOTH), (right, BOTH), (right, BOTH), inputs=inputs, reference=reference)
    outcomes = run_together(alike, budgets(alike))
    assert [outcome.cases for outcome in outcomes] == [40, 40, 40]
    assert built.total() == answered["all"] == 40


def test_each_has_the_account_of_a_run_by_itself(jobs):
    (alone,) = jobs((right, BOTH))
    expected = run_job(alone, BUDGET)
    several = jobs((right, BOTH), (right, BOTH))
    for job, outcome in zip(several, run_together(several, budgets(several)), strict=True):
        assert outcome.job is job
        assert outcome.verdict is Verdict.HOLDS
        assert (outcome.cases, outcome.features, outcome.worst_ratio) == (
            expected.cases, expected.features, expected.worst_ratio
        )  # fmt: skip
        assert outcome.seconds > 0


def test_of_what_cannot_be_drawn_there_is_no_verdict(jobs):
    (component,) = (job.subject.component for job in jobs((right, BOTH)))

    def strategy(constraints):
        return component.strategy(constraints).filter(lambda _: constraints.boxes[0].get("number") != (1000,))

    several = jobs((right, BOTH), (right, {"number": (1000,)}), strategy=strategy)
    some, none = run_together(several, budgets(several, replace(BUDGET, examples=2)))
    assert some.verdict is Verdict.HOLDS
    assert none.verdict is Verdict.NOT_APPLICABLE
    assert none.not_applicable == {NO_CASE: 1}


def test_who_writes_into_its_inputs_fails_and_harms_nobody(jobs):
    def writes(inputs, target):
        inputs.x.add_(1)
        return inputs.x * 2 - 2

    outcomes = run_together(several := jobs((writes, BOTH), (right, BOTH)), budgets(several))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.RAISED, Verdict.HOLDS]


def test_who_writes_is_seen_after_others_for_which_the_inputs_were_looked_at(jobs):
    def writes(inputs, target):
        inputs.x.add_(1)
        return (inputs.x - 1) * 2

    outcomes = run_together(several := jobs((right, BOTH), (writes, BOTH), (right, BOTH)), budgets(several))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.HOLDS, Verdict.RAISED, Verdict.HOLDS]


def test_who_writes_into_its_inputs_and_says_nothing_of_the_case_harms_nobody_either(jobs):
    def leaves(inputs, target):
        inputs.x.add_(1)
        raise KeyError("not here")

    leaving, after = jobs((leaves, BOTH), (right, BOTH))
    item = replace(leaving.subject.implementation, absent=(KeyError,))
    several = [replace(leaving, subject=replace(leaving.subject, implementation=item)), after]
    none, some = run_together(several, budgets(several))
    assert none.verdict is Verdict.NOT_APPLICABLE
    assert (some.verdict, some.cases) == (Verdict.HOLDS, 40)


def tasks_of(jobs, budget=BUDGET):
    return [Task(job, budget, None) for job in jobs]


def test_what_fails_is_found_as_by_itself_and_the_others_hold(jobs, toy):
    several = jobs((right, BOTH), (toy.wrong_above(300), BOTH), (right, ODD))
    runner = TaskRunner(tasks_of(several))
    outcomes = [runner.run(index)[0] for index in range(3)]
    assert [outcome.verdict for outcome in outcomes] == [Verdict.HOLDS, Verdict.WRONG, Verdict.HOLDS]
    alone = run_job(several[1], BUDGET)
    assert outcomes[1].failure.case == alone.failure.case == toy.Case((301,))
    assert outcomes[1].cases == alone.cases


def test_what_only_a_case_of_others_shows_is_a_finding_too(jobs, toy):
    several = jobs((right, BOTH), (right, ODD))
    by_name = replace(BUDGET, seed=None)  # one seed for all would be the same draws for both
    own = {shared.case for shared in planned(several[1:], budgets(several[1:], by_name))}
    seen = {number for case in own for number in case.numbers}
    theirs = {
        number
        for shared in planned(several, budgets(several, by_name))
        for number in shared.case.numbers
        if 1 in shared.takers and number not in seen
    }

    def wrong_there(inputs, target):
        return inputs.x * 2 + torch.isin(inputs.x, torch.tensor([*theirs], dtype=torch.float32)).any()

    rare = jobs((right, BOTH), (wrong_there, ODD))
    assert run_job(rare[1], by_name).failure is None
    outcome, _ = TaskRunner(tasks_of(rare, by_name)).run(1)
    assert outcome.verdict is Verdict.WRONG
    assert theirs.intersection(outcome.failure.case.numbers)
    assert outcome.repeated == (3, 3)


def test_what_does_not_repeat_is_told_so(jobs):
    calls = []

    def once(inputs, target):
        calls.append(1)
        return inputs.x * 2 + (len(calls) == 7)

    outcome, _ = TaskRunner(tasks_of(jobs((right, BOTH), (once, BOTH)))).run(1)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.flaky


@pytest.mark.slow
def test_workers_say_the_same_and_run_no_batch_twice(jobs, toy):
    several = jobs((right, BOTH), (toy.wrong_above(300), BOTH), (right, ODD), (right, PLAIN))
    tasks = [*tasks_of(several), *tasks_of(jobs((right, BOTH), (right, ODD)))]
    runner = TaskRunner(tasks)
    here = [runner.run(index)[0] for index in range(len(tasks))]
    there = sorted(run_in_workers(tasks, 2), key=lambda result: result[0])
    assert [index for index, _, _ in there] == list(range(6))
    for (_, outcome, _), expected in zip(there, here, strict=True):
        assert (outcome.verdict, outcome.cases, outcome.features) == (
            expected.verdict, expected.cases, expected.features
        )  # fmt: skip


def test_only_what_was_chosen_is_run(jobs):
    calls = Counter()

    def counting(name):
        def function(inputs, target):
            calls[name] += 1
            return inputs.x * 2

        return function

    tasks = tasks_of(jobs(*((counting(name), BOTH) for name in "abc")))
    runner = TaskRunner(tasks, chosen={0, 2})
    assert runner.run(2)[0].cases == runner.run(0)[0].cases == 40
    assert calls == {"a": 40, "c": 40}
    assert runner.run(1)[0].cases == 40


def test_who_has_cases_of_its_own_or_another_property_goes_alone(jobs, toy):
    several = jobs((right, BOTH), (right, BOTH), (right, BOTH))
    tasks = [*tasks_of(several), *tasks_of(several[:2], replace(BUDGET, explicit_cases=("{}",)))]
    tasks += tasks_of([replace(several[0], prop=toy.REPEATS)]) + tasks_of(several[:1], Budget())
    writes = replace(toy.REPEATS, in_place=True)
    tasks += tasks_of([replace(one, prop=writes) for one in several[:2]])
    assert list(batches(tasks, range(len(tasks)))) == [(0, 1, 2), *((place,) for place in range(3, 9))]


@pytest.mark.slow
def test_a_run_of_what_is_built_in_has_the_cases_of_each_as_if_it_were_alone():
    plan = make_plan(Request(("rotary", "moe_gating"), target="sim", seed=3, examples=20, isolate=False))
    tasks = plan.tasks(lambda outcome: [])
    together = TaskRunner([task for task in tasks if task.budget.together])
    for index, task in enumerate(task for task in tasks if task.budget.together):
        outcome, _ = together.run(index)
        alone = run_job(task.job, task.budget)
        assert outcome.verdict is Verdict.HOLDS is alone.verdict, (task.job.name, to_plain(outcome.failure.case))
        assert outcome.cases + outcome.not_applicable.total() == alone.cases + alone.not_applicable.total()
    assert not any(task.budget.together for task in tasks if task.job in plan.mutants)


def test_whoever_names_an_implementation_has_draws_of_his_own():
    (first, *_) = make_plan(Request(("rotary",), ("npu_mrope",), target="sim")).tasks(lambda outcome: [])
    assert not first.budget.together


@pytest.mark.slow
def test_no_property_writes_into_the_inputs_that_it_is_given():
    """Or the next one would be given them."""
    plan = make_plan(Request(target="sim", seed=5, mutants=0, isolate=False))
    jobs = [job for job in plan.jobs if not job.prop.in_place]
    one_of_each = {(job.subject.component.name, job.prop.name): job for job in jobs}
    written = []
    for names, job in one_of_each.items():
        component, made = job.subject.component, []

        def inputs(case, component=component, made=made):
            made.append((component.inputs(case), fingerprint(component.inputs(case))))
            return made[-1][0]

        watched = replace(job, subject=replace(job.subject, component=replace(component, inputs=inputs)))
        run_job(watched, Budget(examples=2, seed=5))
        written += [names for given, before in made if fingerprint(given) != before]
    assert len(one_of_each) > 200
    assert written == []
