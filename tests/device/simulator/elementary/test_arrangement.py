"""Operators that move, order and pick elements, against torch, NumPy, and the examples of their documentation."""

import numpy as np
import pytest
import torch

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected

OPS = torch.ops.npu
X = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool])
def test_moved_elements_are_a_copy(dtype):
    x = X.to(dtype)
    for result, expected in (
        (OPS.npu_broadcast(x[:1], [5, 2, 3, 4][1:]), x[:1].expand(2, 3, 4)),
        (OPS.npu_broadcast(x, [5, 2, 3, 4]), x.expand(5, 2, 3, 4)),
        (OPS.npu_reshape(x, [4, 6]), x.reshape(4, 6)),
        (OPS.npu_transpose(x, [2, 0, 1]), x.permute(2, 0, 1)),
        (OPS.npu_slice(x, [0, 1, 2], [2, 2, 1]), x[:, 1:, 2:3]),
        (OPS.npu_confusion_transpose(x, [1, 0, 2], [3, 8], True), x.permute(1, 0, 2).reshape(3, 8)),
        (OPS.npu_confusion_transpose(x, [1, 0], [4, 6], False), x.reshape(4, 6).T),
    ):
        assert torch.equal(result, expected)
        assert result.is_contiguous()
        assert result.data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("perm", "shape", "first"), [([2, 0, 1], [8, 3], True), ([2, 0, 1], [2, 2, 6], False), ([1, 2, 0], [24], True)]
)
def test_confusion_transposes_gradient_is_that_of_autograd(perm, shape, first):
    x = X.clone().requires_grad_()
    out = x.permute(perm).reshape(shape) if first else x.reshape(shape).permute(perm)
    grad = torch.randn(out.shape)
    (expected,) = torch.autograd.grad(out, x, grad)
    assert torch.equal(OPS.npu_confusion_transpose_backward(grad, perm, list(x.shape), not first), expected)


@pytest.mark.parametrize("numbers", [([0, 0, 0], [2, 3, 4], [1, 1, 1]), ([1, 0, 1], [2, 3, 4], [3, 2, 2])])
def test_indexing_is_numpys(numbers):
    expected = X.numpy()[tuple(map(slice, *numbers))]
    assert np.array_equal(OPS.npu_indexing(X, *numbers).numpy(), expected)


def test_paddings_begin_with_the_first_axis():
    x = torch.tensor([[20, 20, 10, 10]], dtype=torch.float16)
    assert OPS.npu_pad(x, [1, 1, 1, 1]).tolist() == [[0.0] * 6, [0, 20, 20, 10, 10, 0], [0.0] * 6]
    assert OPS.npu_pad(x, [0, 1]).tolist() == [[20, 20, 10, 10], [0.0] * 4]
    assert OPS.npu_pad(x, [2]).shape == (3, 4)
    assert torch.equal(OPS.npu_pad(X, [1, 0, 0, 2, 3, 1]), torch.nn.functional.pad(X, (3, 1, 0, 2, 1, 0)))


def test_a_class_that_is_not_there_has_no_place():
    hot = OPS.npu_one_hot(torch.tensor([5, 3, 2, 1], dtype=torch.int32), depth=5)
    assert hot.dtype == torch.float32
    assert hot.tolist() == [[0.0] * 5, [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert OPS.npu_one_hot(torch.tensor([[1]]), -1, 3, 4, -2).tolist() == [[[-2, 4, -2]]]


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_sort_gives_values_alone(dim, descending):
    x = torch.randn(3, 4, 5).half()
    assert torch.equal(OPS.npu_sort_v2(x, dim, descending), x.sort(dim, descending)[0])


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_first_of_the_extremes(name, keepdim, dim):
    x = torch.randint(-2, 3, (3, 8, 4), generator=torch.Generator().manual_seed(0)).float()
    values, indices = getattr(OPS, f"npu_{name}").dim(x, dim, keepdim)
    place = getattr(np, f"arg{name}")(x.numpy(), axis=dim, keepdims=keepdim)  # the first one
    assert torch.equal(values, getattr(x, f"a{name}")(dim, keepdim))
    assert indices.dtype == torch.int32
    assert np.array_equal(indices.numpy(), place)
    grad = torch.randn(values.shape)
    expected = torch.zeros_like(x)
    one_place, one_grad = (t if keepdim else t.unsqueeze(dim) for t in (indices.long(), grad))
    expected.scatter_(dim, one_place, one_grad)
    assert torch.equal(getattr(OPS, f"npu_{name}_backward")(grad, dim, indices, list(x.shape), keepdim), expected)


def test_what_is_no_number_is_the_extreme():
    values, indices = OPS.npu_max.dim(torch.tensor([[1.0, float("nan"), 3.0]]), 1)
    assert values.isnan().item()
    assert indices.item() == 1


def test_bits_of_signs_are_numpys():
    x = torch.tensor([5, 4, 3, 2, 0, -1, -2, 4, 3, 2, 1, 0, -1, -2], dtype=torch.float32)
    assert OPS.npu_sign_bits_pack(x, 2).tolist() == [[159], [15]]
    assert OPS.npu_sign_bits_pack(x.half(), 1).tolist() == [[159, 15]]
    packed = torch.arange(256, dtype=torch.uint8)
    expected = np.unpackbits(packed.numpy(), bitorder="little").reshape(4, -1) * 2.0 - 1
    signs = OPS.npu_sign_bits_unpack(packed, 4, torch.float16)
    assert np.array_equal(signs.numpy(), expected)
    assert signs.dtype == torch.float16
    assert torch.equal(OPS.npu_sign_bits_pack(signs.flatten(), 1), packed[None])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("npu_reshape", (X, [5, 5]), "24 elements"),
        ("npu_transpose", (X, [0, 1]), "an order of 3 axes"),
        ("npu_confusion_transpose", (X, [0, 1, 2], [23], True), "24 elements"),
        ("npu_slice", (X, [0, 0], [1, 1]), "3 numbers each"),
        ("npu_slice", (X, [0, 2, 0], [1, 2, 1]), "2 from 2 on of axis 1; allowed: within 3"),
        ("npu_indexing", (X, [0], [1], [1]), "3 numbers each"),
        ("npu_indexing", (X, [0, 0, 0], [1, 1, 1], [1, 0, 1]), "stride should not be 0"),
        ("npu_indexing", (X, [0, 0, 0], [1, 4, 1], [1, 1, 1]), "within 3"),
        ("npu_pad", (X, [0] * 7), "up to 6 numbers"),
        ("npu_pad", (X, [-1]), "from 0 on"),
        ("npu_sort_v2", (X, 3), "dim was 3"),
        ("npu_sign_bits_pack", (torch.ones(17), 2), "a divisor of 3 bytes"),
        ("npu_sign_bits_pack", (X, 1), "input was of rank 3"),
        ("npu_sign_bits_unpack", (torch.ones(3), 1, torch.float16), "input was float32"),
        ("npu_sign_bits_unpack", (torch.ones(3, dtype=torch.uint8), 5, torch.float16), "a divisor of 24 elements"),
        ("npu_sign_bits_unpack", (torch.ones(3, dtype=torch.uint8), 1, torch.bfloat16), "dtype was torch.bfloat16"),
    ],
)
def test_rejections(name, arguments, message):
    with pytest.raises(OperatorRejected, match=f"{name}: .*{message}"):
        getattr(OPS, name)(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("npu_indexing", (X, [0, 0, 0], [1, 1, 1], [1, 1, 1], 1)),
        ("npu_indexing", (X, [1, 0, 0], [0, 1, 1], [-1, 1, 1])),
        ("npu_one_hot", (torch.tensor([1]), 0, 3)),
    ],
)
def test_what_is_not_simulated_says_so(name, arguments):
    with pytest.raises(NotSimulated, match=name):
        getattr(OPS, name)(*arguments)


def test_an_empty_tensor_has_no_largest():
    with pytest.raises((DeviceFault, IndexError)):
        OPS.npu_max.dim(torch.ones(0, 3), 0)
