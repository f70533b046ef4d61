"""Implementations and mutants of the components that are not part of a default run yet, on the simulator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device.ascend import page_allocation as ascend_page_allocation
from device.ascend import paged_cache as ascend_paged_cache
from device.ascend import rms_norm as ascend_rms_norm
from device.ascend import rotary as ascend_rotary
from device.mutants import page_allocation as mutant_page_allocation
from device.mutants import paged_cache as mutant_paged_cache
from device.mutants import rms_norm as mutant_rms_norm
from device.mutants import rotary as mutant_rotary
from npudiff.component import Subject
from npudiff.discovery import implementations_in, load_target
from npudiff.engine import EQUIVALENCE, run_job
from npudiff.outcome import Budget, Job, Verdict
from properties import page_allocation, paged_cache, rms_norm, rotary

ROOMS = [
    (page_allocation.component, ascend_page_allocation, mutant_page_allocation),
    (paged_cache.component, ascend_paged_cache, mutant_paged_cache),
    (rms_norm.component, ascend_rms_norm, mutant_rms_norm),
    (rotary.component, ascend_rotary, mutant_rotary),
]


def pairs(place, *, wrong):
    found = [(room[0], item) for room in ROOMS for item in implementations_in(room[place]) if bool(item.wrong) is wrong]
    return pytest.mark.parametrize(("component", "item"), found, ids=[f"{c.name}.{item.name}" for c, item in found])


def outcome(component, item, prop, seed, examples=60):
    checked = replace(item, constraints=item.constraints.checked(component.axes, item.name))
    job = Job(Subject(component, checked, load_target("sim", None)), prop, checked.constraints)
    return run_job(job, Budget(examples=examples, seed=seed)) if job.applies else None


@pairs(1, wrong=False)
def test_an_adapter_is_right_on_the_simulator(component, item):
    result = outcome(component, item, EQUIVALENCE, 1)
    assert result.failure is None, component.describe(result.failure.case)
    assert result.cases >= 55
    for relation in component.relations:
        held = outcome(component, item, relation, 1, 15)
        assert held is None or held.failure is None, relation.name


@pairs(2, wrong=True)
def test_a_mutant_names_a_real_bug_and_is_found_from_every_seed(component, item):
    assert "https://github.com/" in item.wrong
    for seed in range(3):
        result = outcome(component, item, EQUIVALENCE, seed, 100)
        assert result.verdict is Verdict.WRONG
        assert result.shrink_seconds <= 5


@pytest.mark.slow
@pairs(1, wrong=False)
def test_no_false_alarm_in_3000_cases(component, item):
    assert outcome(component, item, EQUIVALENCE, 2, 3000).failure is None
