"""``npu_swiglu``: values, where it rounds, and what it refuses."""

import math

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def swiglu(x, *arguments, **more):
    return torch.ops.npu.npu_swiglu(x, *arguments, **more)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_the_first_half_is_activated():
    """By hand: 2 * sigmoid(2) * 10 and 0 * sigmoid(0) * 20."""
    output = swiglu(torch.tensor([[2.0, 0.0, 10.0, 20.0]]))
    assert output.tolist() == [[pytest.approx(20 / (1 + math.exp(-2)), rel=1e-6), 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-1, 0, 1, -2])
def test_one_rounding_from_float64(dtype, dim):
    x = draw(4, 6, 8, dtype=dtype) * 3
    a, b = x.double().chunk(2, dim)
    exact = a * torch.sigmoid(a) * b
    output = swiglu(x, dim)
    assert output.dtype == dtype
    bound = exact.abs() * (torch.finfo(dtype).eps / 2 + 8 * 2**-24) + 1e-7
    assert bool(((output.double() - exact).abs() <= bound).all())


def test_large_gates_do_not_overflow_on_the_way():
    """In float16 exp(-x) of -20 would be infinite."""
    output = swiglu(torch.tensor([[-20.0, 60000.0, 1.0, 1.0]], dtype=torch.float16))
    assert output[0, 1] == 60000.0
    assert abs(output[0, 0].item() + 20 * math.exp(-20)) < 1e-7


def test_views_and_empty_tensors():
    x = draw(8, 6).t()
    assert torch.equal(swiglu(x), swiglu(x.contiguous()))
    assert swiglu(x[:0]).shape == (0, 4)
    assert swiglu(x[:, :0]).shape == (6, 0)


@pytest.mark.parametrize(
    ("x", "dim", "message"),
    [
        (draw(2, 3), -1, r"input was of shape \[2, 3\]; allowed: an even size of axis 1"),
        (draw(3, 2), 0, r"input was of shape \[3, 2\]; allowed: an even size of axis 0"),
        (draw(2, 2), 2, "dim was 2; allowed: -2 to 1"),
        (draw(2, 2), -3, "dim was -3; allowed: -2 to 1"),
        (draw(2, 2).double(), -1, "input was float64; allowed: float16 or bfloat16 or float32"),
        (torch.tensor(1.0), -1, r"input was of rank 0, \[\]; allowed: rank 1 to 8"),
        (draw(*[2] * 9), -1, r"input was of rank 9, \[2, 2, 2, 2, 2, 2, 2, 2, 2\]; allowed: rank 1 to 8"),
    ],
)
def test_rejections(x, dim, message):
    with pytest.raises(OperatorRejected, match=f"npu_swiglu: {message}"):
        swiglu(x, dim)
