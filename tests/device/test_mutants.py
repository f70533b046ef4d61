"""Mutants: each is wrong where its bug is, right elsewhere, found, and shrunk to the smallest case."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace

import pytest

from mutant_pairs import PAIRS
from mutant_pairs.sliding_attention import AT_LENGTH
from npudiff.device import ascend, mutants, targets
from npudiff.judge.compare import same_bits
from npudiff.judge.judge import EQUIVALENCE, property_of_mutant
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.model.job import Job
from npudiff.properties.sliding_attention.case import Request
from npudiff.run.discovery import load_components
from npudiff.run.engine import run_case, run_job
from npudiff.run.plan import Request as RunRequest
from npudiff.run.plan import make_plan
from npudiff.run.ranks import with_ranks

pytestmark = pytest.mark.usefixtures("shrinks_to_its_end")

COMPONENTS = {component.name: component for component in load_components(())}
# Those of components with history are wrong after some steps, and have tests of their own (test_hybrid_pools.py).
MUTANTS = [item for item in map(vars(mutants).get, mutants.__all__) if COMPONENTS[item.component].history is None]

_FIRST = {item.component: item for item in reversed(MUTANTS)}
ONE_OF_EACH = [pytest.param(item, marks=() if _FIRST[item.component] is item else pytest.mark.slow) for item in MUTANTS]
"""All mutants, of each component all but one as a long measurement."""

ORIGINALS = {(item.component, item.name): item for item in map(vars(ascend).get, ascend.__all__)}


SIMULATOR = with_ranks(targets.sim(None), 60.0)
"""Its ranks live on between cases."""


@pytest.fixture(scope="module", autouse=True)
def ranks_end_with_the_tests():
    yield
    SIMULATOR.on_ranks.close()


def by_name(item):
    return item.name


def original(item):
    return ORIGINALS[item.component, item.mutant_of]


def run(item, drawn):
    component = COMPONENTS[item.component]
    with SIMULATOR.activate():
        return Subject(component, item, SIMULATOR).run(component.inputs(drawn))


def among_others(item, drawn, prop):
    """Call an implementation with a case between calls with others, or in a graph, and return the outcome."""
    subject = Subject(COMPONENTS[item.component], item, SIMULATOR)
    return run_case(Job(subject, prop, item.constraints), drawn)


def found(name, seed, where=(), profile="dev", *, shrinks=True):
    """Look for one mutant as a run of all would, and return its outcome."""
    plan = make_plan(RunRequest(target="sim", seed=seed, where=where, hypothesis_profile=profile))
    (job,) = [job for job in plan.mutants if job.subject.implementation.name == name]
    assert plan.budget(job).examples == (
        100 if job.prop is EQUIVALENCE else 8 if job.subject.implementation.graph else 5
    )
    try:
        return run_job(job, replace(plan.budget(job), shrink=shrinks))
    finally:
        job.subject.target.on_ranks.close()


def described(outcome):
    return outcome.job.subject.component.describe(outcome.failure.case).split(" · seed ")[0]


def test_every_mutant_has_its_pair():
    assert {item.name for item in MUTANTS} == set(PAIRS)


@pytest.mark.few(121)
@pytest.mark.parametrize("item", [vars(mutants)[name] for name in mutants.__all__], ids=by_name)
def test_it_names_the_real_bug_and_the_implementation_that_it_was_made_from(item):
    assert original(item).wrong is None
    assert re.search(r"https://github\.com/\S+/(pull|issues)/\d+|\S+\.py \d+", item.wrong)
    assert item.summary.endswith(".")


@pytest.mark.few(112)
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_supports_nothing_that_the_adapter_does_not_support_from_which_it_was_made(item):
    """What is drawn lies within constraints (tests of every component)."""
    assert item.constraints.inside(original(item).constraints, COMPONENTS[item.component].axes)


@pytest.mark.few(60)
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_wrong_where_its_bug_is(item):
    pair, component = PAIRS[item.name], COMPONENTS[item.component]
    component.check_case(pair.shows)
    assert item.constraints.reason_against(component.values(pair.shows)) is None
    right = run(original(item), pair.shows)
    if pair.rejected:
        with pytest.raises(ImplementationRaised):
            run(item, pair.shows)
        return
    prop = property_of_mutant(item)
    if prop is not EQUIVALENCE:  # by itself each call is right
        assert same_bits(right, run(item, pair.shows), "").holds
        assert among_others(item, pair.shows, prop).failure is not None
        assert among_others(original(item), pair.shows, prop).failure is None
        return
    assert not same_bits(right, run(item, pair.shows), "").holds


@pytest.mark.few(90)
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_right_where_its_bug_is_not(item):
    pair = PAIRS[item.name]
    assert pair.elsewhere or pair.everywhere
    for case in pair.elsewhere:
        assert same_bits(run(original(item), case), run(item, case), "").holds, case
        prop = property_of_mutant(item)
        assert prop is EQUIVALENCE or among_others(item, case, prop).failure is None, case


@pytest.mark.few(6)
@pytest.mark.parametrize("item", ONE_OF_EACH, ids=by_name)
def test_it_is_found_within_the_default_budget_and_shrunk(item):
    """By the draws that CI has every time; those of any seed are looked for below, and all others by the score."""
    pair = PAIRS[item.name]
    allowed = (pair.smallest,) if pair.smallest else pair.otherwise
    outcome = found(item.name, None, profile="ci", shrinks=bool(allowed))
    assert outcome.failure is not None
    assert not allowed or described(outcome) in allowed


@pytest.mark.slow
@pytest.mark.parametrize("item", MUTANTS, ids=by_name)
def test_it_is_found_and_shrunk_whatever_the_seed_is(item):
    outcomes = [found(item.name, seed) for seed in range(6)]
    assert [outcome.failure is not None for outcome in outcomes] == [True] * 6
    pair = PAIRS[item.name]
    assert not pair.smallest or {described(one) for one in outcomes} <= {pair.smallest, *pair.otherwise}


@pytest.mark.slow
def test_nearly_every_seed_finds_the_mutant_that_is_hardest_to_find():
    assert sum(found("mask_minus_one", seed).failure is not None for seed in range(100, 140)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_LENGTH)
def test_it_is_found_at_the_end_of_a_long_history(name, record_property):
    outcomes = [found(name, seed, ("kv_length=131072", "window=4096")) for seed in range(5)]
    assert all(outcome.failure is not None for outcome in outcomes)
    for outcome in outcomes:
        assert outcome.failure.case.requests == (Request(1, 131_072),)
        assert (outcome.failure.case.kv_heads, outcome.failure.case.group) == (1, 1)
    seconds = statistics.median(outcome.shrink_seconds for outcome in outcomes)
    record_property("median_shrink_seconds", seconds)
    print(f"{name}: median from failure to minimal {seconds:.2f} s")
    assert seconds <= 5


@pytest.mark.slow
def test_shrinking_takes_seconds(record_property):
    outcomes = [found(item.name, seed) for seed in range(3) for item in MUTANTS]
    times = sorted(outcome.shrink_seconds for outcome in outcomes if outcome.failure is not None)
    record_property("median_shrink_seconds", statistics.median(times))
    print(f"from failure to minimal: median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s")
    assert statistics.median(times) <= 5
