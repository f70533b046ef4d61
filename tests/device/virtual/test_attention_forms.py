"""Forms of fused, sparse and latent attention that no adapter has give the simulator's bits on the virtual NPU."""

from __future__ import annotations

import pytest
import torch

import attention_forms
import mla_forms
import sparse_attention_forms
from npudiff.run.discovery import load_target

pytestmark = pytest.mark.virtual

SPARSE = sparse_attention_forms.forms() | sparse_attention_forms.forms_of_other_packages()
CALLS = attention_forms.forms() | SPARSE | mla_forms.forms()


@pytest.fixture(scope="module")
def targets():
    return [load_target(name, None) for name in ("virtual", "sim")]


def moved(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [moved(item, device) for item in value] if isinstance(value, list) else value


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
        results.append([output.cpu() if isinstance(output, torch.Tensor) else output for output in outputs])
    for one, other in zip(*results, strict=True):
        assert type(one) is type(other)
        if not isinstance(one, torch.Tensor):
            assert one == other
            continue
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert name in SPARSE or one.isfinite().all()  # indexers give -inf where there is no key
