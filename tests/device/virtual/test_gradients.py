"""torch_npu's own formulas of gradients, on the virtual NPU: each calls the operator that the simulator has for it."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.virtual


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(function, *inputs):
    """Return the gradients of a sum with weights, on the device that the inputs are on."""
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    y = function(*leaves)
    weights = draw(*y.shape, seed=9).to(y.device, y.dtype)
    return [one.cpu().double() for one in torch.autograd.grad(y, leaves, weights)]


def turned(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def gated(x):
    first, second = x.chunk(2, -1)
    return torch.nn.functional.silu(first) * second


def operator(name):
    """Return what looks an operator up when it is called: torch_npu defines it where there is one."""

    def call(*inputs):
        return getattr(torch.ops.npu, name)(*inputs)

    return call


def attends(name):
    """Return a call of a version of fused attention for training, on [2, 4 or 2, 5 or 7, 16]."""

    def call(query, key, value):
        return getattr(torch.ops.npu, name)(query, key, value, 4, "BNSD", scale=0.3)[0]

    return call


def attention(query, key, value):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True)


def with_sink(query, key, value, sink):
    """Add a score without a value, per head."""
    keys, values = (one.repeat_interleave(2, 1) for one in (key, value))
    scores = query @ keys.mT * 0.3
    column = sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat((column, scores), -1).softmax(-1)[..., 1:] @ values


ATTENDED = (draw(2, 4, 5, 16), draw(2, 2, 7, 16, seed=1), draw(2, 2, 7, 16, seed=2))

CASES = {
    "npu_rms_norm": (
        lambda x, gamma: torch.ops.npu.npu_rms_norm(x, gamma, 1e-6)[0],
        lambda x, gamma: torch.nn.functional.rms_norm(x, gamma.shape, gamma, 1e-6),
        (draw(5, 16), draw(16, seed=1)),
    ),
    "npu_swiglu": (operator("npu_swiglu"), gated, (draw(5, 16),)),
    "npu_rotary_mul": (
        operator("npu_rotary_mul"),
        lambda x, r1, r2: x * r1 + turned(x) * r2,
        (draw(2, 5, 3, 16), draw(1, 5, 1, 16, seed=1), draw(1, 5, 1, 16, seed=2)),
    ),
    "npu_fusion_attention": (attends("npu_fusion_attention"), attention, ATTENDED),
    "npu_fusion_attention with a sink": (
        lambda *tensors: torch.ops.npu.npu_fusion_attention(*tensors[:3], 4, "BNSD", scale=0.3, sink=tensors[3])[0],
        with_sink,
        (*ATTENDED, draw(4, seed=3)),
    ),
    "npu_fusion_attention_v2": (attends("npu_fusion_attention_v2"), attention, ATTENDED),
    "npu_fast_gelu": (operator("npu_fast_gelu"), lambda x: x * (1.702 * x).sigmoid(), (draw(40),)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_torch_in_float64(name):
    operator, formula, inputs = CASES[name]
    given = gradients(operator, *(one.npu() for one in inputs))
    exact = gradients(formula, *(one.double() for one in inputs))
    for one, other in zip(given, exact, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
