"""Faults of a virtual device, as torch_npu tells them: each is told of the case whose fault it is."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from npudiff.device import ascend, targets
from npudiff.device.virtual import faults
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.faults import Kind
from npudiff.model.job import Isolation, Job
from npudiff.run.discovery import load_component
from planted import inspected, places

pytestmark = pytest.mark.virtual


@pytest.fixture
def inspect(tmp_path):
    """Judge cases of rms_norm with so many tokens on the virtual NPU, of which some have faults."""
    component, target = load_component("rms_norm"), targets.virtual(None)

    def run(numbers, **planted):
        right = ascend.npu_rms_norm

        def function(inputs, target):
            number = len(inputs.hidden)
            for fault, many in planted.items():
                if number in many and fault.startswith("npu_rms_norm:"):
                    faults._state.waiting = faults.parse(fault)
            if number in planted.get("segfault", ()):
                os.kill(os.getpid(), signal.SIGSEGV)
            outputs = {name: tensor.cpu() for name, tensor in right.function(inputs, target).items()}
            if number in planted.get("lost after", ()):
                faults._state.waiting = faults.parse("*:507015")
            return outputs

        job = Job(Subject(component, replace(right, function=function), target), EQUIVALENCE, right.constraints)
        with target.activate():
            return inspected(
                job,
                numbers,
                lambda number: component.case_type(number, hidden_size=16),
                Isolation(tmp_path, warm_up=20.0, run=1.0),
            )

    return run


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("npu_rms_norm:507015", Kind.FAULT),
        ("npu_rms_norm:hang", Kind.TIMED_OUT),
        ("npu_rms_norm:memory", Kind.OUT_OF_MEMORY),
        ("segfault", Kind.DIED),
        ("npu_rms_norm:value", None),
    ],
)
def test_a_fault_is_told_and_the_next_case_is_judged(inspect, fault, kind):
    seen = inspect(range(1, 5), **{fault: [2]})
    assert seen.failed == {2: kind}
    assert seen.held == [1, 3, 4]
    assert not seen.outcome.poisonings


def test_a_device_that_is_lost_after_a_case_is_told_of_that_case(inspect):
    seen = inspect(range(1, 12), **{"lost after": [7]})
    assert not seen.failed
    assert seen.held == list(range(1, 12))
    assert seen.poisoning("tokens") == [7]


def with_planted_faults(inspect, count, **many):
    order, at = places(count, many)
    order, at = [one + 1 for one in order], {fault: [one + 1 for one in numbers] for fault, numbers in at.items()}
    kinds = {
        "segfault": at["crashes"][::3],
        "npu_rms_norm:507015": at["crashes"][1::3],
        "npu_rms_norm:507899": at["crashes"][2::3],
        "npu_rms_norm:hang": at["hangs"],
        "lost after": at["poisons"],
    }
    seen = inspect(order, **kinds)
    assert sorted(seen.failed) == sorted([*at["crashes"], *at["hangs"]])
    assert sorted(seen.poisoning("tokens")) == sorted(at["poisons"])
    assert sorted(seen.held) == sorted({*order} - {*at["crashes"], *at["hangs"]})


def test_a_hundred_cases_with_planted_faults(inspect):
    with_planted_faults(inspect, 100, crashes=6, hangs=1, poisons=2)


@pytest.mark.slow
def test_a_thousand_cases_with_eighty_planted_faults(inspect):
    with_planted_faults(inspect, 1000, crashes=50, hangs=20, poisons=10)
