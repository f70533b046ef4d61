"""gelu, its gated form, silu and mish against torch in float64, and their gradients against autograd."""

import pytest
import torch
from torch.nn import functional

from npudiff.device.simulator import OperatorRejected

OPS = torch.ops.npu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(*shape, dtype, seed=0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def within(given, exact, dtype, cancelled=0.0):
    """Whether a result is rounded once, from float32, in which terms of some size cancel."""
    return ((given.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6 + 2e-7 * cancelled).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_its_gradient_and_its_gated_form(dtype, approximate):
    x, grad = draw(7, 40, dtype=dtype), draw(7, 40, dtype=dtype, seed=1)
    wide = x.double().requires_grad_()
    exact = functional.gelu(wide, approximate=approximate)
    (gradient,) = torch.autograd.grad(exact, wide, grad.double())
    assert within(OPS.npu_gelu(x, approximate=approximate), exact.detach(), dtype)
    by_tangent = (x.double() ** 3 * grad.double()).abs()  # 1 - tanh^2 times the slope within it
    assert within(OPS.npu_gelu_backward(grad, x, approximate=approximate), gradient, dtype, by_tangent)
    first, second = x.double().chunk(2, -1)
    gated = OPS.npu_gelu_mul(x, approximate=approximate)
    assert gated.dtype == dtype
    assert within(gated, functional.gelu(first, approximate=approximate) * second, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "mish"])
def test_silu_and_mish_and_their_gradients(dtype, name):
    x, grad = draw(5, 40, dtype=dtype), draw(5, 40, dtype=dtype, seed=1)
    wide = x.double().requires_grad_()
    exact = getattr(functional, name)(wide)
    (gradient,) = torch.autograd.grad(exact, wide, grad.double())
    result = getattr(OPS, f"npu_{name}")(x)
    more = (result,) if name == "silu" else ()
    assert within(result, exact.detach(), dtype)
    assert within(getattr(OPS, f"npu_{name}_backward")(grad, x, *more), gradient, dtype)


def test_silu_in_place_writes_its_argument():
    x = torch.tensor([1.0, -2.0, 0.0])
    expected = OPS.npu_silu(x)
    assert OPS.npu_silu_(x) is x
    assert torch.equal(x, expected)


X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"),
    [
        ("npu_gelu", (X,), {"approximate": "sigmoid"}, "approximate was 'sigmoid'; .*must be either none or tanh"),
        ("npu_gelu", (X.int(),), {}, "input was int32"),
        ("npu_gelu_mul", (X[0],), {}, "input was of rank 1"),
        ("npu_gelu_mul", (X[:, :3],), {}, ".*an even size of axis 1"),
        ("npu_gelu_mul", (torch.ones(1, 1026),), {}, "input was 1026; allowed: 2 to 1024"),
        ("npu_gelu_mul", (torch.ones(1).expand(200_001, 2),), {}, "input was 200001; allowed: 0 to 200000"),
        ("npu_silu", (X.int(),), {}, "input was int32"),
        ("npu_mish", (X.double(),), {}, "input was float64"),
    ],
)
def test_rejections(name, arguments, options, message):
    with pytest.raises(OperatorRejected, match=f"{name}: {message}"):
        getattr(OPS, name)(*arguments, **options)
