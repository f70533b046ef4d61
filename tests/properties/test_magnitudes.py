"""Numbers near the ends of a dtype: kernels that lose subnormal numbers, or leave the dtype on their way, are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from device import ascend, targets
from npudiff.component import Subject
from npudiff.discovery import load_component
from npudiff.engine import EQUIVALENCE, run_job
from npudiff.outcome import Budget, Job
from properties import magnitudes


def flushed(inputs):
    """The inputs of a kernel that takes subnormal float16 for zero."""
    least = torch.finfo(torch.float16).smallest_normal
    parts = {
        name: value.where(value.abs() >= least, 0)
        for name, value in vars(inputs).items()
        if isinstance(value, torch.Tensor) and value.dtype == torch.float16
    }
    return replace(inputs, **parts)


def doubled(inputs, *names):
    """The inputs of a kernel whose sums are twice as large on their way."""
    twice = {name: getattr(inputs, name) * 2 for name in names if getattr(inputs, name).dtype == torch.float16}
    return replace(inputs, **twice)


def halved(outputs, inputs):
    return {name: value / 2 if value.dtype == torch.float16 else value for name, value in outputs.items()}


def found(item, function, **within):
    component = load_component(item.component)
    wrong = replace(item, function=function)
    job = Job(Subject(component, wrong, targets.sim(None)), EQUIVALENCE, item.constraints)
    return run_job(job, Budget(examples=100, seed=3)).failure


@pytest.mark.parametrize(
    "item", [ascend.native_rotary, ascend.native_rms_norm, ascend.composed_swiglu, ascend.native_finalize]
)
def test_a_kernel_that_loses_subnormal_numbers_is_found(item):
    assert found(item, item.function) is None
    failure = found(item, lambda inputs, target: item.function(flushed(inputs), target))
    assert failure is not None
    assert failure.case.dtype == "float16"


@pytest.mark.parametrize(
    ("item", "names"),
    [(ascend.native_rotary, ("query", "key")), (ascend.native_finalize, ("expert_rows",))],
)
def test_a_kernel_whose_sums_leave_float16_on_their_way_is_found(item, names):
    def function(inputs, target):
        if getattr(inputs, "skip", None) is not None:
            return item.function(inputs, target)
        return halved(item.function(doubled(inputs, *names), target), inputs)

    failure = found(item, function)
    assert failure is not None
    assert failure.case.magnitude == "large"


def test_the_largest_numbers_and_what_is_made_of_them_are_inside():
    for dtype, factor in magnitudes.LARGE.items():
        assert 4 * 3.7 * factor < torch.finfo(dtype).max
    half = magnitudes.SMALL[torch.float16]
    assert 3.7 * half < torch.finfo(torch.float16).smallest_normal
    assert half > torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
