"""Tensors that go through shared memory arrive as they were."""

from __future__ import annotations

import pytest
import torch

from npudiff.run.isolation.ipc import SharedTensors, flat_bytes

TENSORS = {
    "one number for all": torch.zeros((), dtype=torch.float64).expand(3, 4),
    "one element, expanded": torch.full((), 2.5, dtype=torch.float64).expand(1),
    "every second element": torch.arange(10)[::2],
    "transposed": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
    "no dimensions": torch.tensor(7, dtype=torch.int16),
    "nothing": torch.empty(0, 5),
    "with an offset": torch.arange(9, dtype=torch.float32)[4:],
    "needs gradients": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_whatever_its_strides_are(name):
    shared = SharedTensors()
    (found,) = shared.read(shared.write([TENSORS[name]]))
    shared.close()
    assert found.dtype == TENSORS[name].dtype
    assert torch.equal(found, TENSORS[name])


@pytest.mark.parametrize("name", TENSORS)
def test_its_bytes_are_those_of_its_elements(name):
    tensor = TENSORS[name].detach()
    elements = tensor.reshape(-1).tolist()
    found = flat_bytes(tensor)
    assert found.numel() == tensor.numel() * tensor.element_size()
    assert (found.view(tensor.dtype).tolist() if elements else []) == elements
