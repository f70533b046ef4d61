"""``npu_interleave_rope``: pairs come in interleaved and go out in half order."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile


def interleave_rope(x, cos, sin):
    return torch.ops.npu.npu_interleave_rope(x, cos, sin)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def draw(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(x, cos, sin):
    """Turn pair (2i, 2i + 1), of which the parts go to i and i + 32."""
    x, cos, sin = x.double(), cos.double(), sin.double()
    output = torch.empty(x.shape, dtype=torch.float64)
    for i in range(32):
        real, imaginary = x[..., 2 * i], x[..., 2 * i + 1]
        output[..., i] = real * cos[..., i] - imaginary * sin[..., i]
        output[..., i + 32] = imaginary * cos[..., i + 32] + real * sin[..., i + 32]
    return output


def test_without_turning_it_only_reorders():
    x = torch.arange(64, dtype=torch.bfloat16).view(1, 1, 1, 64)
    output = interleave_rope(x, torch.ones_like(x), torch.zeros_like(x))
    assert output.flatten().tolist() == [*range(0, 64, 2), *range(1, 64, 2)]


def test_a_quarter_turn_by_hand():
    x = torch.arange(64, dtype=torch.bfloat16).view(1, 1, 1, 64)
    output = interleave_rope(x, torch.zeros_like(x), torch.ones_like(x)).flatten().tolist()
    assert output == [*(-float(i) for i in range(1, 64, 2)), *range(0, 64, 2)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5])
def test_against_float64(dtype, length):
    x = draw(2, 3, 5, 64, dtype=dtype)
    cos, sin = (draw(2, 1, length, 64, dtype=dtype, seed=s).clamp(-1, 1) for s in (1, 2))
    output, expected = interleave_rope(x, cos, sin), exact(x, cos, sin)
    assert output.dtype == dtype
    assert ((output - expected).abs() <= torch.finfo(dtype).eps / 2 * expected.abs() + 1e-6).all()


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
def test_it_rounds_once_and_to_even(dtype, step):
    x, cos, sin = (torch.zeros(1, 1, 1, 64, dtype=dtype) for _ in range(3))
    x[..., 0], x[..., 1] = 1 + step, 1 + 2 * step
    cos[..., 0], sin[..., 0] = 1 + step, 1
    assert interleave_rope(x, cos, sin)[..., 0].item() == step**2
    x[..., 0], x[..., 1], cos[..., 0] = 1, -step / 2, 1
    assert interleave_rope(x, cos, sin)[..., 0].item() == 1


GOOD = ((2, 3, 5, 64), (2, 1, 5, 64), (2, 1, 5, 64))


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 3, 5, 32), "x was of head dim 32; allowed: head dim 64"),
        (0, (3, 5, 64), r"x was of rank 3, \[3, 5, 64\]; allowed: rank 4"),
        (1, (2, 5, 64), r"cos was of rank 3, \[2, 5, 64\]; allowed: rank 4"),
        (1, (1, 1, 5, 64), r"cos was of shape \[1, 1, 5, 64\]; allowed: \[2, 1, 5, 64\], \[B, 1, S or 1, 64\]"),
        (1, (2, 3, 5, 64), r"cos was of shape \[2, 3, 5, 64\]"),
        (1, (2, 1, 4, 64), r"cos was of shape \[2, 1, 4, 64\]"),
        (2, (2, 1, 1, 64), r"sin was of shape \[2, 1, 1, 64\]; allowed: \[2, 1, 5, 64\], as cos"),
    ],
)
def test_rejected_shapes(position, shape, message):
    shapes = list(GOOD)
    shapes[position] = shape
    with pytest.raises(OperatorRejected, match=message):
        interleave_rope(*(draw(*shape) for shape in shapes))


def test_rejected_dtypes():
    x, cos, sin = (draw(*shape) for shape in GOOD)
    with pytest.raises(OperatorRejected, match="cos was float16; allowed: bfloat16, as x"):
        interleave_rope(x, cos.half(), sin)
    with pytest.raises(OperatorRejected, match="sin was float32; allowed: bfloat16, as x"):
        interleave_rope(x, cos, sin.float())
    x, cos, sin = x.float(), cos.float(), sin.float()
    with pytest.raises(OperatorRejected, match="x was float32; allowed: float16 or bfloat16"):
        interleave_rope(x, cos, sin)
    with changed(interleave_rope_dtypes=("float16", "bfloat16", "float32")):
        assert torch.allclose(interleave_rope(x, cos, sin).double(), exact(x, cos, sin), atol=1e-5)


@pytest.mark.parametrize("position", range(3))
def test_non_contiguous(position):
    tensors = [draw(*shape) for shape in GOOD]
    straight = interleave_rope(*tensors)
    name = ("x", "cos", "sin")[position]
    tensors[position] = tensors[position].transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(interleave_rope(*tensors), straight)
    with changed(non_contiguous="rejected"), pytest.raises(OperatorRejected, match=f"{name} was not contiguous"):
        interleave_rope(*tensors)
