"""A finding is shrunk to at most twice the smallest case that shows its bug: every case below half of it holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exhaustive import check_rising, size_of, smallest_failing
from exhaustive_spaces import SPACES
from npudiff.device import mutants, targets
from npudiff.run.discovery import load_components
from npudiff.run.engine import run_job
from npudiff.run.plan import Request, make_plan

COMPONENTS = {component.name: component for component in load_components(())}
SEEDS = range(1, 6)
QUICK = ("mask_table_of_10000", "first_count_is_the_seconds", "always_halves")
DOCUMENT = (Path(__file__).parents[3] / "docs" / "score.md").read_text(encoding="utf-8")


def row(text):
    """Shrunk size, smallest size and cases that were run for it, as the document has them for one mutant."""
    return re.search(rf"^\| `\w+` \| `{text}` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", DOCUMENT, re.MULTILINE)


def shrunk(name, seed):
    """Elements of the case that a run of all mutants of a component ends with for one of them."""
    component = COMPONENTS[vars(mutants)[name].component]
    plan = make_plan(Request(components=(component.name,), target="sim", seed=seed))
    (job,) = [job for job in plan.mutants if job.subject.implementation.name == name]
    return size_of(component, run_job(job, plan.budget(job)).failure.case)


def smallest(name, at_most):
    item, target = vars(mutants)[name], targets.sim(None)
    with target.activate():
        return smallest_failing(COMPONENTS[item.component], item, target, SPACES[name], at_most)


def test_there_are_enough_of_different_components():
    assert len(SPACES) >= 10
    assert len({vars(mutants)[name].component for name in SPACES}) >= 5
    assert all(row(name) for name in SPACES)


@pytest.mark.few(8)
@pytest.mark.parametrize("name", SPACES)
def test_a_space_leaves_out_nothing_that_is_small(name):
    check_rising(COMPONENTS[vars(mutants)[name].component], SPACES[name], samples=30, furthest=12)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", QUICK)
def test_one_seed_ends_within_twice_the_smallest(name):
    size = shrunk(name, seed=1)
    assert size <= 2 * smallest(name, size).size


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_every_seed_ends_within_twice_the_smallest(name, record_property):
    size = max(shrunk(name, seed) for seed in SEEDS)
    least = smallest(name, size)
    record_property("smallest", f"{name}: {size} elements, smallest {least.size}, {least.tried} cases")
    print(f"| `{vars(mutants)[name].component}` | `{name}` | {size:,} | {least.size:,} | {least.tried:,} |")
    assert size <= 2 * least.size
    assert [int(number.replace(",", "")) for number in row(name).groups()] == [size, least.size, least.tried]
