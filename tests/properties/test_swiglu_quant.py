"""Every relation of swiglu_quant can fail: for each, a device that breaks what it says. Cases are as they say."""

from __future__ import annotations

import pytest
import torch

from draws import drawn
from npudiff import implementation
from npudiff.device.ascend.swiglu_quant import composed
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties._shared.loads import equal_groups
from npudiff.properties.swiglu_quant import SUMS, SwigluQuantCase, component, counts_of
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

BROKEN = {
    "tokens_do_not_mix": lambda i, scale: scale * (1 + torch.arange(len(scale))),
    "twice_the_ups": lambda i, scale: scale.square(),
    "rows_to_spare": lambda i, scale: scale * len(scale),
    "a_group_in_two": lambda i, scale: scale * len(i.counts),
}


def job(name, device):
    (relation,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("swiglu_quant", name="mine", supports={"rounding": ("once",)})(device)
    within = item.constraints.within(Constraints((relation.within,)))
    return Job(Subject(component, item, load_target("sim", None)), relation, within)


def verdict(name, device):
    return run_job(job(name, device), Budget(examples=20, seed=1, shrink=False)).verdict


@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_a_device_that_breaks_it_is_found_and_a_right_one_is_not(name):
    def broken(inputs, target):
        right = composed(inputs)
        return {**right, "scale": BROKEN[name](inputs, right["scale"])}

    assert verdict(name, broken) is Verdict.WRONG
    assert verdict(name, lambda inputs, target: composed(inputs)) is Verdict.HOLDS


def test_integers_that_change_with_the_ups_are_found():
    def rounded(inputs, target):
        right = composed(inputs)
        return {**right, "quantised": torch.where(right["scale"].unsqueeze(1) > 0.1, 0, right["quantised"])}

    assert verdict("twice_the_ups", rounded) is Verdict.WRONG


def test_sums_are_as_large_as_they_say():
    largest = {}
    for case in drawn(component, Constraints.of({"sums": SUMS[1:], "recipe": ("gaussian", "outlier", "beyond")}), 80):
        states = component.inputs(case).states[: case.tokens].to(torch.int64)
        largest[case.sums] = max(largest.get(case.sums, 0), int(states.abs().max()))
    assert 2**14 < largest["small"] < 2**24
    assert 2**30 < largest["beyond 2**24"] < 2**31


@pytest.mark.parametrize(
    ("load", "empty", "full"), [("one gets all", [0, 1], [2]), ("first gets none", [0], [1, 2]), ("any", [], [0, 1, 2])]
)
def test_rows_are_spread_as_they_say(load, empty, full):
    counts = component.inputs(SwigluQuantCase(40, groups=3, load=load, spare_rows=5)).counts.tolist()
    assert sum(counts) == 40
    assert [counts[group] for group in empty] == [0] * len(empty)
    assert all(counts[group] for group in full)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 0}, "tokens must lie in 1..131072, got 0"),
        ({"sums": "large"}, "sums is one of none, small, beyond 2"),
        ({"groups": 0}, "groups must be none or lie in 1..1024, got 0"),
        ({"spare_rows": 1}, "spare_rows without groups"),
        ({"bias": True}, "a bias needs sums, and a call without groups"),
        ({"bias": True, "sums": "small", "groups": 2}, "a bias needs sums, and a call without groups"),
        ({"tokens": 2**16, "width": 2**16}, "more than"),
        ({"limit": 0.0}, "limit must lie in 0.001..10000"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_what_cannot_be_built_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        component.check_case(SwigluQuantCase(**({"tokens": 2} | changed)))


def test_equal_groups_but_two_are_alike_by_their_ends_and_their_sum():
    assert equal_groups(13, 4, but_two=False).tolist() == [3, 3, 3, 3]
    assert equal_groups(13, 4, but_two=True).tolist() == [3, 2, 4, 3]
    assert equal_groups(2, 4, but_two=True).tolist() == [0, 0, 0, 0]
    assert counts_of(SwigluQuantCase(13, groups=4, load="equal but two")).tolist() == [3, 2, 4, 4]
