"""``npu_quant_matmul_gelu`` and ``npu_quant_matmul_reduce_sum`` against torch in float64, and what is refused."""

import pytest
import torch
from torch.nn import functional

from npudiff.device.simulator import OperatorRejected

OPS = torch.ops.npu


def integers(*shape, seed=0, low=-128, high=128, dtype=torch.int8):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scales(*shape, seed=0, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) / 100 + 1e-3).to(dtype)


def packed(values):
    """Return words of eight integers of 4 bits, the first in the lowest bits."""
    nibbles = values.long().unflatten(-1, (-1, 8)) & 15
    words = sum(nibbles[..., place] << (4 * place) for place in range(8))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def check(given, left, right, x1_scale, x2_scale, bias, approximate="none"):
    """Compare with float64; a gelu grows no faster than 1.13."""
    sums = left.double() @ right.double()
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias
    values = sums * x2_scale.double() * x1_scale.double().view(-1, 1)
    if bias is not None and bias.dtype != torch.int32:
        values = values + bias.double()
    wanted = functional.gelu(values, approximate=approximate)
    bound = torch.finfo(given.dtype).eps / 2 * wanted.abs() + 1e-6 * (1 + values.abs())
    assert given.shape == wanted.shape
    assert ((given.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize(("approximate", "mode"), [(None, "none"), ("gelu_erf", "none"), ("gelu_tanh", "tanh")])
@pytest.mark.parametrize("batches", [((), ()), ((3,), (3,)), ((2, 1), (3,)), ((), (3,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8(approximate, mode, batches, dtype):
    x1, x2 = integers(*batches[0], 5, 33), integers(*batches[1], 33, 7, seed=1)
    x1_scale, x2_scale = scales(5), scales(7, seed=1, dtype=dtype)
    given = OPS.npu_quant_matmul_gelu(x1, x2, x1_scale, x2_scale, approximate=approximate)
    assert given.dtype == (torch.float16 if dtype == torch.float32 else torch.bfloat16)
    check(given, x1, x2, x1_scale, x2_scale, None, mode)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 1, 7)])
def test_biases(dtype, shape):
    x1, x2, x1_scale, x2_scale = integers(3, 5, 33), integers(3, 33, 7, seed=1), scales(5), scales(1, seed=1)
    bias = integers(*shape, seed=3, high=9000, dtype=dtype) if dtype == torch.int32 else scales(*shape).to(dtype) * 9
    given = OPS.npu_quant_matmul_gelu(x1, x2, x1_scale, x2_scale, bias=bias)
    assert given.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)
    check(given, x1, x2, x1_scale, x2_scale, bias)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_int4(transposed, with_bias):
    left, right = integers(5, 32, low=-8, high=8), integers(32, 16, low=-8, high=8, seed=1)
    words = packed(right.T.contiguous()).T if transposed else packed(right)
    x1_scale, x2_scale = scales(5), scales(16, seed=1)
    bias = integers(16, low=-50, high=50, dtype=torch.int32) if with_bias else None
    given = OPS.npu_quant_matmul_gelu(packed(left), words, x1_scale, x2_scale, bias=bias)
    check(given, left, right, x1_scale, x2_scale, bias)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"approximate": "tanh"}, "approximate must be 'gelu_tanh' or 'gelu_erf'"),
        ({"x1": integers(5, 32).half()}, r"Only A4W4 \(int4/int32\) or A8W8"),
        ({"x2": integers(31, 7)}, "x2 was"),
        ({"x2": integers(4, 32, 7), "x1": integers(3, 5, 32)}, "x2 was"),
        ({"x1": integers(32)}, "x1 was of rank 1"),
        ({"x1_scale": scales(7)}, "x1_scale was"),
        ({"x1_scale": scales(5).half()}, "x1_scale was"),
        ({"x2_scale": scales(5)}, "x2_scale was"),
        ({"x2_scale": scales(7).half()}, "x2_scale was"),
        ({"bias": scales(6)}, "bias was"),
        ({"bias": scales(3, 1, 7)}, "bias was"),
        ({"bias": scales(7).double()}, "bias was"),
    ],
)
def test_what_gelu_refuses(spoil, said):
    call = {"x1": integers(5, 32), "x2": integers(32, 7), "x1_scale": scales(5), "x2_scale": scales(7)}
    OPS.npu_quant_matmul_gelu(**call)
    with pytest.raises(OperatorRejected, match=said):
        OPS.npu_quant_matmul_gelu(**call | spoil)


def test_words_have_a_bias_of_int32_only():
    call = packed(integers(5, 32, low=-8, high=8)), packed(integers(32, 16, low=-8, high=8)), scales(5), scales(16)
    with pytest.raises(OperatorRejected, match="bias was float32; allowed: int32"):
        OPS.npu_quant_matmul_gelu(*call, bias=scales(16))


def summed(**spoil):
    call = {"x1": integers(3, 5, 33), "x2": OPS.npu_format_cast(integers(3, 33, 7, seed=1), 29)}
    call |= {"x1_scale": scales(3, 5), "x2_scale": scales(7, dtype=torch.bfloat16), **spoil}
    return call, OPS.npu_quant_matmul_reduce_sum(**call)


def test_sums_over_a_batch():
    call, given = summed()
    assert given.dtype == torch.bfloat16
    terms = call["x1"].double() @ integers(3, 33, 7, seed=1).double() * call["x1_scale"].double().unsqueeze(2)
    terms = terms * call["x2_scale"].double()
    bound = 2**-8 * terms.sum(0).abs() + 1e-6 * terms.abs().sum(0)
    assert ((given.double() - terms.sum(0)).abs() <= bound).all()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x2", integers(3, 33, 7)),
        ("x1", integers(3, 5, 33).int()),
        ("x1", integers(5, 33)),
        ("x1", integers(2, 5, 33)),
        ("x1_scale", None),
        ("x2_scale", None),
        ("x1_scale", scales(5)),
        ("x2_scale", scales(7)),
        ("x2_scale", scales(6, dtype=torch.bfloat16)),
    ],
)
def test_what_sums_refuse(argument, value):
    with pytest.raises(OperatorRejected):
        summed(**{argument: value})
