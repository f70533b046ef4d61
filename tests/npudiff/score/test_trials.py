"""Methods and trials: who finds what, after how many cases, and who accuses what is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.judge.compare import error_ratio
from npudiff.model.baselines import BaselineSpec
from npudiff.model.component import ImplementationRaised, OutputComparison
from npudiff.model.implementation import Implementation
from npudiff.score.methods import ALLCLOSE, METHODS, PUBLISHED, _not_close, _published
from npudiff.score.trials import Trial, _with_relations, elements, run_trials

BASELINES = BaselineSpec(fixed={"count": (1, 4), "number": (8, 16)}, sizes={"count": range(1, 5), "number": range(64)})


def job(toy, function, name, *, wrong="a bug", **changes):
    made = toy.job(function, baselines=BASELINES, **changes)
    item = Implementation("toy", name, function, made.subject.implementation.constraints, wrong=wrong)
    return replace(made, subject=replace(made.subject, implementation=item))


def trials(toy, function, **changes):
    made = job(toy, function, "mine", **changes)
    return run_trials([made], seeds=(1, 2), baseline_seeds=(1,), examples=60, workers=2)


def by_method(found):
    return {name: [trial for trial in found if trial.method == name] for name in (method.name for method in METHODS)}


@pytest.mark.slow
def test_a_bug_of_large_numbers_is_ours(toy):
    table = by_method(trials(toy, toy.wrong_above(100)))
    assert [trial.found for trial in table["npudiff"]] == [True, True]
    assert [trial.found for trial in table["fixed shapes"]] == [False]
    assert [trial.found for trial in table["random shapes"]] == [False]
    assert [trial.found for trial in table["ours, allclose"]] == [True]
    for trial in table["npudiff"]:
        assert (trial.mutant, trial.prop, trial.size, trial.case) == ("toy.mine", "equivalence", 1, "101")
        assert 1 <= trial.cases <= 60
        assert trial.seconds > 0
    assert table["fixed shapes"][0].cases == 4
    assert table["random shapes"][0].cases > 20
    assert {trial.seed for trial in table["npudiff"]} == {1, 2}


def test_trials_are_in_order_of_mutants_methods_and_seeds(toy):
    jobs = [job(toy, toy.wrong_above(1), "one"), job(toy, toy.wrong_above(1), "two")]
    methods = METHODS[:2]
    found = run_trials(jobs, seeds=(3, 1), baseline_seeds=(2,), examples=5, workers=2, methods=methods)
    names = [(trial.mutant[4:], trial.method, trial.seed) for trial in found]
    each = [("npudiff", 1), ("npudiff", 3), ("fixed shapes", 2)]
    assert names == [(mutant, *one) for mutant in ("one", "two") for one in each]


def test_no_seed_is_begun_after_the_time_but_the_first(toy):
    made = [job(toy, toy.wrong_above(1), "mine")]
    found = run_trials(
        made, seeds=range(5, 9), baseline_seeds=(), examples=5, workers=1, methods=METHODS[:1], seconds=0
    )
    assert [trial.seed for trial in found] == [5]


@pytest.mark.slow
def test_a_bug_of_every_number_is_everybodys(toy):
    table = by_method(trials(toy, toy.wrong_above(1)))
    blind = "ours, cosine"  # half of everything has the direction of everything
    assert all(trial.found for method, found in table.items() for trial in found if method != blind)
    assert table["fixed shapes"][0].cases == 1


def test_an_exception_is_found_by_everybody(toy):
    def function(inputs, target):
        raise ImplementationRaised("no")

    assert all(trial.found for trial in trials(toy, function))


@pytest.mark.slow
def test_what_equivalence_misses_relations_may_find(toy):
    """It gives other bits every second time, within the bound."""
    calls = []

    def function(inputs, target):
        calls.append(None)
        return toy.double(inputs) + 0.25 * (len(calls) % 2)

    for trial in by_method(trials(toy, function))["npudiff"]:
        assert (trial.found, trial.prop) == (True, "repeats")
        assert trial.cases > 30  # those of equivalence, which found nothing, come first


def test_what_is_kept_between_calls_is_kept_through_a_test(toy):
    """Every second call of one object is wrong: one object a case never shows it, one object a test does."""

    def opens():
        calls = []

        def function(inputs, target):
            calls.append(None)
            return toy.double(inputs) * (1 if len(calls) % 2 else 2)

        return function

    def afresh(inputs, target):
        return opens()(inputs, target)

    made = job(toy, afresh, "mine")
    item = replace(made.subject.implementation, factory=opens)
    made = replace(made, subject=replace(made.subject, implementation=item))
    table = by_method(run_trials([made], seeds=(1,), baseline_seeds=(1,), examples=60, workers=1))
    assert table["fixed shapes"][0].found
    assert table["npudiff"][0].prop != "equivalence"


@pytest.mark.slow
def test_a_right_implementation_is_asked_too(toy):
    made = job(toy, lambda inputs, target: toy.double(inputs) * (1 + 2e-4), "right", wrong=None)
    found = run_trials([made], seeds=(1, 2, 3), baseline_seeds=(1,), examples=60, workers=1)
    assert all(trial.right for trial in found)
    table = by_method(found)
    assert [trial.found for trial in table["npudiff"]] == [False]
    assert [trial.found for trial in table["ours, CANN single"]] == [True]


def test_a_component_that_does_not_say_what_is_ordinary_has_no_such_trials(toy):
    made = job(toy, toy.wrong_above(1), "mine")
    made = replace(made, subject=replace(made.subject, component=toy.component))
    found = run_trials([made], seeds=(1,), baseline_seeds=(1,), examples=20, workers=1)
    assert {trial.method for trial in found} == {
        method.name for method in METHODS if method.name[:4] in ("npud", "ours")
    }


def output(actual, value, bound=0.5):
    actual, value = torch.tensor(actual), torch.tensor(value, dtype=torch.float64)
    bounds = torch.full_like(value, bound)
    return OutputComparison("y", None, error_ratio(actual, value, bounds), actual, value, bounds)


@pytest.mark.parametrize(
    ("actual", "value", "close"),
    [
        ([1.0, 100.0], [1.015, 101.0], True),
        ([1.0], [1.03], False),
        ([float("nan")], [float("nan")], True),
        ([float("nan")], [1.0], False),
        ([5], [5.0], True),
        ([5], [5.009], False),
        ([True], [1.0], True),
    ],
)
def test_close_is_what_tests_mean_by_it(actual, value, close):
    assert (_not_close(output(actual, value)) is None) is close


def test_what_is_not_specified_is_not_judged():
    one = output([1.0, 7.0], [1.0, 0.0])
    unspecified = replace(one, bound=torch.tensor([0.5, torch.inf], dtype=torch.float64))
    assert _not_close(unspecified) is None


def test_published_criteria_judge_floats_and_the_rest_has_to_be_equal():
    for criterion in PUBLISHED:
        assert _published(criterion, output([1.0, 2.0], [1.0, 2.0])) is None
        assert _published(criterion, output([1.0, 2.0], [2.0, -1.0])) == criterion
        assert _published(criterion, output([1, 2], [1.0, 3.0], bound=0.0)) == "differs"
    assert ALLCLOSE.name == "allclose"


def test_the_size_of_a_case_is_that_of_all_its_tensors(toy):
    inputs = toy.component.inputs(toy.Case((1, 2, 3)))
    assert elements(inputs) == 3
    assert elements(replace(inputs, kind=(torch.zeros(2, 2), [torch.zeros(5)], 7))) == 3 + 4 + 5


@pytest.mark.slow
def test_a_trial_is_followed_once_when_nothing_of_it_is_left(toy):
    made, followed = [job(toy, toy.wrong_above(2000), "one"), job(toy, toy.wrong_above(1), "two")], []
    found = run_trials(made, seeds=(1, 2), baseline_seeds=(1,), examples=20, workers=2, follow=followed.append)
    assert sorted(map(str, followed)) == sorted(map(str, found))
    assert len(followed) == len(found) > 4
    missed = [trial for trial in found if trial.mutant == "toy.one" and trial.method == "npudiff"]
    assert [trial.cases > 20 for trial in missed] == [True, True]  # with those of its relations


def test_what_ends_a_run_early_takes_no_trial_away_that_was_over(toy):
    followed = []

    def follow(trial):
        followed.append(trial)
        if len(followed) == 3:
            raise KeyboardInterrupt

    made = [job(toy, toy.wrong_above(1), f"m{number}") for number in range(6)]
    with pytest.raises(KeyboardInterrupt):
        run_trials(made, seeds=(1,), baseline_seeds=(), examples=5, workers=1, methods=METHODS[:1], follow=follow)
    assert [trial.mutant for trial in followed] == ["toy.m0", "toy.m1", "toy.m2"]


def test_cases_of_relations_come_after_those_of_equivalence():
    first = Trial("m", "npudiff", 1, found=False, cases=30, seconds=2.0)
    none = Trial("m", "npudiff", 1, found=False, prop="", cases=3, seconds=0.5)
    one = Trial("m", "npudiff", 1, found=True, prop="repeats", cases=4, seconds=0.25)
    later = Trial("m", "npudiff", 1, found=True, prop="other", cases=100, seconds=9.0)
    found = _with_relations(first, [none, one, later])
    assert (found.found, found.prop, found.cases, found.seconds) == (True, "repeats", 37, 2.75)
    assert _with_relations(first, [none, none]) == replace(first, cases=36, seconds=3.0)
