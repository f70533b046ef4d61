"""``npu_geglu`` and ``npu_fast_gelu``: torch's gelu and closed formulas in float64, and the gradient by autograd."""

import math

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

OPS = torch.ops.npu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(*shape, dtype, seed=0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


def within(given, exact, dtype, roundings=1):
    return ((given.double() - exact).abs() <= roundings * torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("approximate", [0, 1])
@pytest.mark.parametrize("left", [True, False])
def test_geglu_against_torch_in_float64(dtype, dim, approximate, left):
    x = draw(4, 6, 8, dtype=dtype)
    y, gelu = OPS.npu_geglu(x, dim, approximate, left)
    first, second = x.double().chunk(2, dim)
    activated, other = (first, second) if left else (second, first)
    exact = torch.nn.functional.gelu(activated, approximate="tanh" if approximate else "none")
    assert y.dtype == gelu.dtype == dtype
    assert within(gelu, exact, dtype)
    assert within(y, exact * other, dtype)  # the gelu that is multiplied has not been rounded


def test_geglu_by_default_is_the_tangents_of_the_second_half():
    x = draw(2, 8, dtype=torch.float32)
    assert torch.equal(OPS.npu_geglu(x)[0], OPS.npu_geglu(x, -1, 1, False)[0])
    ones = torch.tensor([[3.0, 1.0]])
    assert OPS.npu_geglu(ones)[1].item() == pytest.approx(0.841192, abs=1e-6)
    assert OPS.npu_geglu(ones, approximate=0)[1].item() == pytest.approx(0.841345, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fast_gelu_and_its_gradient(dtype):
    x, grad = draw(5, 40, dtype=dtype), draw(5, 40, dtype=dtype, seed=1)
    wide = x.double().requires_grad_()
    exact = wide / (1 + (-1.702 * wide).exp())
    (gradient,) = torch.autograd.grad(exact, wide, grad.double())
    assert within(OPS.npu_fast_gelu(x), exact.detach(), dtype)
    assert within(OPS.npu_fast_gelu_backward(grad, x), gradient, dtype)


def test_fast_gelu_far_out():
    x = torch.tensor([-1e4, 1e4, 0.0, -math.inf, math.inf])
    assert OPS.npu_fast_gelu(x)[:3].tolist() == [0, 1e4, 0]
    assert OPS.npu_fast_gelu_backward(torch.ones(3), x[:3]).tolist() == [0, 1, 0.5]


X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("npu_geglu", (X, 2), r"dim was 2; .*: attribute \[dim\] out of range \[-2, 1\]"),
        ("npu_geglu", (torch.ones(()),), r"input was of rank 0; .*: dim num out of range \[1, 8\]"),
        ("npu_geglu", (X[:, :3],), "input was of shape .*an even size"),
        ("npu_geglu", (X.int(),), "input was int32"),
        ("npu_geglu", (X, -1, 2), "approximate was 2; allowed: 0 or 1"),
        ("npu_fast_gelu", (X.int(),), "input was int32"),
        ("npu_fast_gelu_backward", (X.half(), X), "grad was float16; allowed: float32, as input"),
        ("npu_fast_gelu_backward", (X[:1], X), r"grad was of shape \[1, 4\]"),
    ],
)
def test_rejections(name, arguments, message):
    with pytest.raises(OperatorRejected, match=f"{name}: {message}"):
        getattr(OPS, name)(*arguments)
