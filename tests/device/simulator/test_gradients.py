"""Gradient operators against autograd in float64: those of ``npu_rms_norm``, ``npu_swiglu`` and ``npu_rotary_mul``."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

OPS = torch.ops.npu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def within(given, exact, dtype, count=1):
    """Whether what was rounded once, of a sum of some float32 products, is what it should be."""
    error = torch.finfo(dtype).eps / 2 * exact.abs() + count * 2e-6
    return ((given.double() - exact).abs() <= error).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 48), (2, 3, 48), (48,)])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("wide_gamma", [False, True])
def test_rms_norm(dtype, shape, axes, wide_gamma):
    axes = min(axes, len(shape))
    x, dy = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    gamma = draw(*shape[-axes:], dtype=torch.float32 if wide_gamma else dtype, seed=2)
    rstd = OPS.npu_rms_norm(x, gamma, 1e-5)[1]
    dx, dgamma = OPS.npu_rms_norm_backward(dy, x, gamma, rstd)
    wide, weight = x.double().requires_grad_(), gamma.double().requires_grad_()
    y = torch.nn.functional.rms_norm(wide, gamma.shape, weight, 1e-5)
    exact = torch.autograd.grad(y, (wide, weight), dy.double())
    assert (dx.dtype, dgamma.dtype, dgamma.shape) == (dtype, torch.float32, gamma.shape)
    assert within(dx, exact[0], dtype)
    assert within(dgamma, exact[1], torch.float32, 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_swiglu(dtype, dim):
    x = draw(4, 6, 8, dtype=dtype)
    y = OPS.npu_swiglu(x, dim)
    grad = draw(*y.shape, dtype=dtype, seed=1)
    wide = x.double().requires_grad_()
    gate, up = wide.chunk(2, dim)
    (exact,) = torch.autograd.grad(torch.nn.functional.silu(gate) * up, wide, grad.double())
    given = OPS.npu_swiglu_backward(grad, x, dim)
    assert given.dtype == dtype
    assert within(given, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("angles", [(1, 5, 1, 16), (1, 1, 6, 16), (4, 1, 1, 16), (4, 5, 1, 16), (4, 5, 6, 16)])
def test_rotary_mul(dtype, mode, angles):
    if mode == "interleave" and sum(size > 1 for size in angles) > 2:
        angles = (1, 5, 1, 16)
    x, grad = draw(4, 5, 6, 16, dtype=dtype), draw(4, 5, 6, 16, dtype=dtype, seed=1)
    r1, r2 = draw(*angles, dtype=dtype, seed=2), draw(*angles, dtype=dtype, seed=3)
    given = OPS.npu_rotary_mul_backward(grad, x, r1, r2, mode)
    inputs = [one.double().requires_grad_() for one in (x, r1, r2)]
    wide, cos, sin = inputs
    if mode == "half":
        first, second = wide.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-wide[..., 1::2], wide[..., ::2]), -1).flatten(-2)
    exact = torch.autograd.grad(wide * cos + turned * sin, inputs, grad.double())
    for one, other in zip(given, exact, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        assert within(one, other, dtype, 20)


def test_rotary_mul_casts_to_the_dtype_of_input():
    x, r = draw(1, 4, 1, 8, dtype=torch.bfloat16), draw(1, 4, 1, 8, dtype=torch.float32)
    grad = draw(1, 4, 1, 8, dtype=torch.float32, seed=1)
    given = OPS.npu_rotary_mul_backward(grad, x, r, r)
    narrow = OPS.npu_rotary_mul_backward(grad.bfloat16(), x, r.bfloat16(), r.bfloat16())
    for one, other in zip(given, narrow, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)


X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("npu_rms_norm_backward", (X[:1], X, X[0], X[:, :1]), r"dy was of shape \[1, 4\]"),
        ("npu_rms_norm_backward", (X.half(), X, X[0], X[:, :1]), "dy was float16; allowed: float32, as input"),
        ("npu_rms_norm_backward", (X, X, X[0], X), r"rstd was of shape \[2, 4\]; allowed: \[2, 1\]"),
        ("npu_rms_norm_backward", (X, X, X[0], X[:, :1].half()), "rstd was float16; allowed: float32"),
        ("npu_rms_norm_backward", (X, X, X[0, :2], X[:, :1]), "gamma was of shape"),
        ("npu_swiglu_backward", (X, X), r"grad_output was of shape \[2, 4\]; allowed: \[2, 2\], half of input"),
        ("npu_swiglu_backward", (X[:, :2].half(), X), "grad_output was float16; allowed: float32, as input"),
        ("npu_swiglu_backward", (X, X[:, :3]), "input was of shape .*an even size"),
        ("npu_swiglu_backward", (X, X, 2), "dim was 2; allowed: -2 to 1"),
        ("npu_swiglu_backward", (X.int(), X.int()), "input was int32"),
        (
            "npu_rotary_mul_backward",
            (X[None, None], X[None, None], X[None, None, :1], X[None, None, :1], "quarter"),
            "rotary_mode was 'quarter'.*: The rotary_mode of npu_rotary_mul_backward should be half or interleave",
        ),
        (
            "npu_rotary_mul_backward",
            (X[None, None, :1], X[None, None], X[None, None], X[None, None]),
            r"grad was of shape \[1, 1, 1, 4\]",
        ),
    ],
)
def test_rejections(name, arguments, message):
    with pytest.raises(OperatorRejected, match=f"{name}: {message}"):
        getattr(OPS, name)(*arguments)


def test_rotary_mul_refuses_what_the_forward_operator_refuses():
    with pytest.raises(OperatorRejected, match="npu_rotary_mul: r1 was"):
        OPS.npu_rotary_mul_backward(
            torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4)
        )
