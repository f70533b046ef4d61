"""Attention over chosen tokens, which no adapter has, gives the simulator's bits on the virtual NPU."""

from __future__ import annotations

import pytest
import torch

from npudiff.run.discovery import load_target
from sparse_attention_forms import forms

pytestmark = pytest.mark.virtual

CALLS = forms()


@pytest.fixture(scope="module")
def targets():
    return [load_target(name, None) for name in ("virtual", "sim")]


def moved(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits(targets, name):
    operator, positional, keywords = CALLS[name]
    results = []
    for target in targets:
        with target.activate():
            tensors = [moved(value, target.device) for value in positional]
            others = {key: moved(value, target.device) for key, value in keywords.items()}
            outputs = getattr(torch.ops.npu, operator)(*tensors, **others)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        results.append([output.cpu() for output in outputs])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
