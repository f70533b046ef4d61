"""Operators without an adapter: on the virtual NPU they give the bits that the CPU kernels give."""

from __future__ import annotations

import pytest
import torch

from operator_calls import calls, calls_of_other_packages

pytestmark = pytest.mark.virtual


@pytest.fixture(autouse=True)
def _internal_formats(virtual_npu):
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def tensors(outputs):
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [one.cpu().contiguous() for one in outputs if isinstance(one, torch.Tensor)]


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("call", [*calls(), *calls_of_other_packages()], ids=lambda call: call.name)
def test_the_same_bits(call):
    device, host = [], []

    def moved(tensor):
        device.append(tensor.npu())
        return device[-1]

    def copied(tensor):
        host.append(tensor.clone())
        return host[-1]

    given, expected = tensors(call.run(moved)), tensors(call.run(copied))
    assert [bits(one) for one in given] == [bits(one) for one in expected]
    assert [bits(one.cpu()) for one in device] == [bits(one) for one in host], "what is written"
