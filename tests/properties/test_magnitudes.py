"""Numbers near the ends of a dtype: kernels that lose subnormal numbers, or leave the dtype on their way, are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.device import ascend, targets
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job
from npudiff.properties._shared import magnitudes
from npudiff.run.discovery import load_component
from npudiff.run.engine import run_job


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


def halved(outputs):
    return {name: value / 2 if value.dtype == torch.float16 else value for name, value in outputs.items()}


def found(item, function, **within):
    component = load_component(item.component)
    wrong = replace(item, function=function)
    constraints = item.constraints.within(Constraints((within,)))
    job = Job(Subject(component, wrong, targets.sim(None)), EQUIVALENCE, constraints)
    return run_job(job, Budget(examples=100, seed=3)).failure


@pytest.mark.slow
@pytest.mark.parametrize(
    "item", [ascend.native_rotary, ascend.native_rms_norm, ascend.composed_swiglu, ascend.native_finalize]
)
def test_a_kernel_that_loses_subnormal_numbers_is_found(item):
    assert found(item, item.function) is None
    failure = found(item, lambda inputs, target: item.function(flushed(inputs), target), dtype=("float16",))
    assert failure is not None


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("item", "names"),
    [(ascend.native_rotary, ("query", "key")), (ascend.native_finalize, ("expanded_rows",))],
)
def test_a_kernel_whose_sums_leave_float16_on_their_way_is_found(item, names):
    def function(inputs, target):
        if getattr(inputs, "residual", None) is not None:
            return item.function(inputs, target)
        outputs = item.function(doubled(inputs, *names), target)
        return halved(outputs if isinstance(outputs, dict) else {"output": outputs})

    assert found(item, function, magnitude=("usual",)) is None
    failure = found(item, function, magnitude=("usual", "large"), dtype=("float16",))
    assert failure is not None
    assert failure.case.magnitude == "large"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_and_small_numbers_are_inside(dtype):
    numbers = torch.linspace(-3.7, 3.7, 100)
    large, small, least = magnitudes.large(numbers, dtype), magnitudes.small(numbers, dtype), torch.finfo(dtype)
    assert torch.equal(large.sign(), numbers.sign())
    assert 4 * large.abs().max() <= 2**16 if dtype == torch.float16 else large.square().isinf().all()
    assert (small.to(dtype) != 0).all()
    assert small.abs().max() < least.smallest_normal if dtype == torch.float16 else (small.square() == 0).all()
