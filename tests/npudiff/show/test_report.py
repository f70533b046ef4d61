from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from npudiff.model.job import Outcome
from npudiff.show.report import Group, bound_text, grouped


def outcome(toy, **changes):
    return Outcome(toy.job(), **{"cases": 10, "worst_ratio": 0.25, "exact": False, **changes})


def test_outcomes_are_grouped_by_implementation_in_their_order(toy):
    outcomes = [outcome(toy, cases=1), outcome(toy, cases=2)]
    (group,) = grouped(outcomes)
    assert group.name == "mine"
    assert group.outcomes == tuple(outcomes)
    assert group.cases == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ([{}], "ok, 1 property"),
        ([{}, {}], "ok, 2 properties"),
        ([{}, {"cases": 0}], "ok, 1 property"),
        ([{"cases": 0}], "not applicable"),
        ([{"cases": 95, "not_applicable": Counter(why=5)}], "ok, 1 property"),
        ([{"cases": 94, "not_applicable": Counter(why=6)}], "ok, 1 property; many draws n/a"),
        ([{"left_out": Counter(lse=10)}, {}], "ok, 2 properties; without lse"),
        ([{"left_out": Counter(lse=9, rstd=10)}], "ok, 1 property; without rstd"),
        ([{"failure": object()}, {}], "1 finding"),
        ([{"failure": object()}, {"failure": object()}], "2 findings"),
    ],
)
def test_the_result_says_what_matters_most(toy, changes, text):
    outcomes = [outcome(toy, **change) for change in changes]
    for number, one in enumerate(outcomes):
        one.job = replace(one.job, prop=replace(one.job.prop, name=f"property {number}"))
    assert Group("mine", tuple(outcomes)).result()[0] == text


def test_a_property_that_ran_several_times_is_one(toy):
    assert Group("mine", (outcome(toy), outcome(toy))).result()[0] == "ok, 1 property"


def test_the_bound_column_is_the_worst_of_what_fails_else_of_what_holds(toy):
    def text(*changes):
        return bound_text(Group("mine", tuple(outcome(toy, **change) for change in changes)))

    assert text({}, {"worst_ratio": 0.5}) == "0.50"
    assert text({}, {"worst_ratio": 0.9988}) == "0.998"  # and not 1.00, which would look like too much
    assert text({}, {"worst_ratio": 1.0}) == "1.000"
    assert text({"exact": True}) == "exact"
    assert text({"exact": True}, {}) == "0.25"
    assert text({"cases": 0}) == "-"
    assert text({"cases": 1, "failure": object()}) == "-"
    assert text({}, {"failure": object(), "failed_ratio": 14.63}, {"failure": object(), "failed_ratio": 3.0}) == "14.6"
    assert text({}, {"failed_ratio": math.inf}, {"failed_ratio": 2.0}) == "2"
    assert text({}, {"failed_ratio": math.inf}) == "differs"


def test_the_share_of_a_region_is_that_of_all_cases(toy):
    one, other = outcome(toy, features=Counter(odd=5)), outcome(toy, cases=30, features=Counter(odd=5))
    assert Group("mine", (one, other)).share("odd") == 0.25
    assert Group("mine", (outcome(toy, cases=0),)).share("odd") == 0


KERNEL = """
import npudiff

@npudiff.implementation("dynamic_quant", name="mine", on_device=True)
def mine(inputs, target):
    from npudiff.reference.dynamic_quant import dynamic_quant
    return {"scale": dynamic_quant(inputs)["scale"].value.float()}
"""


@pytest.mark.parametrize("how", ["--no-isolate", "--isolate"])
def test_outputs_that_are_not_returned_are_named(cli, kernel, how):
    options = ("--impl", kernel(KERNEL), "--target", "sim", "--examples", "5", "--workers", "1")
    result = cli("check", "dynamic_quant", *options, how)
    assert result.code == 0, result.out
    assert "; without quantised" in result.out
