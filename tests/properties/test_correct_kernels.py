"""Kernels that do something unusual and are right: no property of their component may accuse them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff.draw.chooser import usual_sizes
from npudiff.judge.judge import check, properties_of
from npudiff.model.component import NotApplicable, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Job
from npudiff.reference.cache_layout import CacheLayout
from npudiff.run.discovery import load_components, load_target, select_implementations

CASES = 15
COMPONENTS = {component.name: component for component in load_components([])}


def counted(name, change, within=None):
    """Run every property on drawn cases of the first right implementation, changed; return how many applied."""
    component, target, applied = COMPONENTS[name], load_target("sim", None), 0
    right = next(item for item in select_implementations([component], []) if item.wrong is None)
    item = replace(right, function=change(right), factory=None)
    with target.activate(), usual_sizes():  # what is unusual here has nothing to do with sizes
        for prop in properties_of(component):
            job = Job(Subject(component, item, target), prop, right.constraints.within(Constraints.of(within or {})))
            for case in drawn(component, job.drawn_within, CASES) if job.applies else ():
                try:
                    comparison = check(prop, job.subject, case)
                except NotApplicable:
                    continue
                applied += 1
                assert comparison.holds, (prop.name, component.describe(case), comparison.context)
    return applied


def outputs_of(name, returned):
    return dict(returned) if isinstance(returned, dict) else {COMPONENTS[name].outputs[0]: returned}


def own_buffers(name):
    """Return what writes outputs into the same memory each time, and returns views of it."""
    buffers = {}

    def change(right):
        def function(inputs, target):
            outputs = {}
            for output, tensor in outputs_of(name, right(inputs, target)).items():
                buffer = buffers.setdefault((output, tensor.dtype), torch.empty(2**24, dtype=tensor.dtype))
                outputs[output] = buffer[: tensor.numel()].view(tensor.shape).copy_(tensor)
            return outputs

        return function

    return change


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swa_mask", "rms_norm", "sliding_attention", "paged_cache", "moe_routing", "swiglu"])
def test_one_that_returns_its_own_buffer(name):
    assert counted(name, own_buffers(name)) > 40


def other_zeros(name):
    """Return what gives zeros the other sign in every second call."""
    calls = []

    def change(right):
        def function(inputs, target):
            calls.append(len(calls))
            outputs = outputs_of(name, right(inputs, target))
            if len(calls) % 2:
                return outputs
            return {
                output: torch.where(tensor == 0, -tensor, tensor) if tensor.is_floating_point() else tensor
                for output, tensor in outputs.items()
            }

        return function

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("sliding_attention", {"fully_masked_rows": ("any", "empty"), "batch": range(1, 4)}),
        ("rms_norm", None),
        ("swiglu", None),
        ("moe_finalize", None),
    ],
)
def test_one_whose_zeros_have_either_sign(name, within):
    assert counted(name, other_zeros(name), within) > 30


def without_padding(right):
    """Return what leaves slot 0 as it was, as one that skips padded tokens."""

    def function(inputs, target):
        outputs = dict(right(inputs, target))
        for name in [output for output in outputs if output.endswith("_cache")]:
            before, after = getattr(inputs, name), outputs[name].clone()
            heads = getattr(inputs, "key", torch.empty(1, 1)).shape[1]
            dim = before.numel() // (before.shape[0] * inputs.page_size * heads)
            layout = CacheLayout(inputs.layout, before.shape[0], inputs.page_size, heads, dim, before.dtype)
            dummy = layout.addresses(torch.zeros(1, dtype=torch.int64))
            after.view(-1)[dummy] = before.reshape(-1)[dummy]
            outputs[name] = after
        return outputs

    return function


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("paged_cache", {}),
        ("kv_rmsnorm_rope_cache", {"placement": ("scattered",)}),
        ("mla_preprocess", {}),
    ],
)
def test_one_that_skips_padding_and_leaves_slot_0_alone(name, within):
    one = {**within, "padded_tokens": (1, 2), "padding": ("slot 0",)}
    assert counted(name, without_padding, one) > 25
