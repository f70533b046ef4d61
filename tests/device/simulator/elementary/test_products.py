"""Products, layer norm and cross entropy against torch in float64, and their gradients against autograd."""

import pytest
import torch
from torch.nn import functional

from npudiff.device.simulator import NotSimulated, OperatorRejected

OPS = torch.ops.npu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def within(given, exact, magnitude, dtype):
    """Whether a sum is float32, and rounded once."""
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 * magnitude + 1e-6
    return given.dtype == dtype and ((given.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_and_its_gradient(dtype, with_bias):
    x, weight, bias = draw(5, 33, dtype=dtype), draw(7, 33, dtype=dtype, seed=1), draw(7, dtype=dtype, seed=2)
    wide = [one.double().requires_grad_() for one in (x, weight)]
    exact = functional.linear(*wide, bias.double() if with_bias else None)
    magnitude = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    assert within(OPS.npu_linear(x, weight, bias if with_bias else None), exact.detach(), magnitude, dtype)
    grad = draw(5, 7, dtype=dtype, seed=3)
    expected = torch.autograd.grad(exact, wide, grad.double())
    for given, one in zip(OPS.npu_linear_backward(grad, x, weight), expected, strict=True):
        assert within(given, one, 40.0, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [((4,), (4,)), ((1, 3), (2, 1)), ((), (3,))])
def test_products_of_batches_and_their_gradients(dtype, batches):
    first, second = draw(*batches[0], 5, 17, dtype=dtype), draw(*batches[1], 17, 6, dtype=dtype, seed=1)
    wide = [one.double().requires_grad_() for one in (first, second)]
    exact = wide[0] @ wide[1]
    assert within(OPS.npu_bmmV2(first, second, []), exact.detach(), 40.0, dtype)
    grad = draw(*exact.shape, dtype=dtype, seed=2)
    expected = torch.autograd.grad(exact, wide, grad.double())
    given = (
        OPS.npu_bmm_v2_mat1_backward(grad, first, second, list(first.shape)),
        OPS.npu_bmm_v2_mat2_backward(grad, first, second, list(second.shape)),
    )
    for one, other in zip(given, expected, strict=True):
        assert within(one, other, 40.0, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_for_a_batch_norm(dtype):
    x = draw(3, 5, 4, 7, dtype=dtype)
    wide, given = x.double(), OPS.batch_norm_reduce(x, 1e-5)
    for one, exact in zip(given, (wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))), strict=True):
        assert one.shape == (5,)
        assert within(one, exact, wide.abs().sum((0, 2, 3)) + wide.square().sum((0, 2, 3)), torch.float32)


def test_sums_for_a_batch_norm_are_of_four_axes():
    with pytest.raises(OperatorRejected, match="must more than 1"):
        OPS.batch_norm_reduce(torch.ones(3), 1e-5)
    for x in (torch.ones(3, 4), torch.ones(3, 4, 2, 2, dtype=torch.float64)):
        with pytest.raises(OperatorRejected, match="batch_norm_reduce: input was"):
            OPS.batch_norm_reduce(x, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(dtype, axes, affine):
    x = draw(6, 4, 8, dtype=dtype)
    shape = x.shape[-axes:]
    given = (draw(*shape, dtype=dtype, seed=1), draw(*shape, dtype=dtype, seed=2)) if affine else (None, None)
    exact = functional.layer_norm(x.double(), shape, *(None if one is None else one.double() for one in given), 1e-3)
    assert within(OPS.npu_layer_norm_eval(x, list(shape), *given, eps=1e-3), exact, 10.0, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy(dtype):
    x, labels = draw(3, 50, dtype=dtype), draw(3, 50, dtype=dtype, seed=1).abs()
    exact = torch.stack(
        [functional.cross_entropy(one, other) for one, other in zip(x.double(), labels.double(), strict=True)]
    )
    assert within(OPS.npu_softmax_cross_entropy_with_logits(x, labels), exact, 200.0, dtype)


X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("npu_linear", (X, torch.ones(3, 5)), "weight was of shape"),
        ("npu_linear", (X, torch.ones(3, 4).half()), "weight was float16; allowed: float32, as input"),
        ("npu_linear", (X, torch.ones(3, 4), torch.ones(4)), r"bias was of shape \[4\]"),
        ("npu_bmmV2", (X.int(), X.int(), []), "input was int32"),
        ("npu_bmmV2", (X, X, []), "mat2 was of shape"),
        ("npu_layer_norm_eval", (X, [3]), r"normalized_shape was \[3\]"),
        ("npu_layer_norm_eval", (X, [4], torch.ones(3)), r"weight was of shape \[3\]"),
        ("npu_softmax_cross_entropy_with_logits", (X, X[:1]), r"labels was of shape \[1, 4\]"),
        ("npu_softmax_cross_entropy_with_logits", (X[0], X[0]), "input was of rank 1"),
    ],
)
def test_rejections(name, arguments, message):
    with pytest.raises(OperatorRejected, match=f"{name}: {message}"):
        getattr(OPS, name)(*arguments)


def test_sums_over_batches_are_not_simulated():
    with pytest.raises(NotSimulated, match="output_sizes"):
        OPS.npu_bmmV2(X, X.T, [1, 2, 2])
