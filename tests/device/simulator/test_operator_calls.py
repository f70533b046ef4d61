"""Operators without an adapter: shape functions agree with the CPU kernels, which write into what they may."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import namespace, qualified_name
from operator_calls import calls, calls_of_other_packages

CALLS = [*calls(), *calls_of_other_packages()]


def shapes(outputs):
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [(tuple(one.shape), one.dtype) for one in outputs if isinstance(one, torch.Tensor)]


@pytest.mark.few(133)
@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_shape_functions_agree_with_kernels(call, kind):
    eager = shapes(call.run(lambda tensor: tensor.clone()))
    mode = FakeTensorMode()
    with mode if kind == "fake" else torch.no_grad():
        inferred = shapes(call.run(mode.from_tensor if kind == "fake" else lambda tensor: tensor.to("meta")))
    for number, (one, other) in enumerate(zip(inferred, eager, strict=True)):
        assert one[1] == other[1]
        assert one[0] == other[0] or number in call.placeholders


@pytest.mark.few(67)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_only_what_the_schema_says_is_written(call):
    copies = []

    def copied(tensor):
        copies.append((tensor, tensor.clone()))
        return copies[-1][1]

    call.run(copied)
    schema = next(one.schema for one in operators() if called(one.schema) == call.qualified)
    unchanged = all(torch.equal(*(one.view(torch.uint8) for one in pair)) for pair in copies if pair[0].dim())
    assert unchanged or "!" in schema or call.undeclared
    assert not (unchanged and call.undeclared)


def called(schema):
    return f"{namespace(schema)}::{qualified_name(schema)}"
