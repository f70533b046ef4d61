"""bfloat16 is rounded to nearest even, as torch rounds it; in Triton's own interpreter it is an integer."""

from __future__ import annotations

import operator

import pytest
import torch

pytestmark = pytest.mark.triton

HALVES = [torch.bfloat16, torch.float16]

TORCHS = {
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "negate": lambda a, b: -a,
    "abs": lambda a, b: a.abs(),
    "maximum": torch.maximum,
    "where": lambda a, b: torch.where(a < b, a, b),
    "clamp": lambda a, b: a.clamp(-1, 1),
    "fma": lambda a, b: (a.double() * b.double() + a.double()).to(a.dtype),
    "scalar": lambda a, b: a * torch.tensor(0.3).to(a.dtype),
    "full": lambda a, b: torch.tensor(1.7).to(a.dtype) + a,
    "integer": lambda a, b: a.trunc(),
}


def drawn(count, seed, dtype):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def bits():
    """float32 of all signs and exponents, of which many lie exactly between two bfloat16, or beside such a place."""
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    lower = torch.tensor([0x8000, 0x7FFF, 0x8001, 0x0000, 0xFFFF], dtype=torch.int32)
    return (upper | lower[torch.arange(1 << 16) % 5]).view(torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", TORCHS)
def test_an_operation_is_that_of_torch(kernels, name, dtype):
    a, b = drawn(96, 0, dtype), drawn(96, 1, dtype)
    out = torch.empty_like(a, device="npu")
    kernels.computed[(1,)](a.npu(), b.npu(), out, OPERATION=name, BLOCK=96)
    assert torch.equal(out.cpu(), TORCHS[name](a, b))


@pytest.mark.parametrize("dtype", HALVES)
def test_functions_take_16_bit_floats(kernels, dtype):
    x = drawn(32, 3, dtype)
    out = torch.empty_like(x, device="npu")
    kernels.exponential[(1,)](x.npu(), out, BLOCK=32)
    assert torch.equal(out.cpu(), x.double().exp().to(dtype))


@pytest.mark.parametrize("dtype", [*HALVES, torch.int32])
def test_max_and_min_are_those_of_elements(kernels, dtype):
    x = drawn(32, 2, torch.float32).to(dtype)
    out = torch.empty_like(x, device="npu")
    kernels.bounded[(1,)](x.npu(), out, 2, BLOCK=32)
    assert torch.equal(out.cpu(), x.clamp(0, 2))
    assert max(1, 2) == 2


@pytest.mark.parametrize("mode", ["default", "rtne"])
def test_float32_is_rounded_to_nearest_even(kernels, mode):
    x = bits()
    out = torch.empty(1 << 16, dtype=torch.bfloat16, device="npu")
    kernels.converted[(16,)](x.npu(), out, MODE=mode, BLOCK=1 << 12)
    right = x.to(torch.bfloat16)
    numbers = ~right.isnan()
    assert torch.equal(out.cpu()[numbers].view(torch.int16), right[numbers].view(torch.int16))
    assert out.cpu()[~numbers].isnan().all()
    ties = (x.view(torch.int32) & 0xFFFF) == 0x8000
    up = right.view(torch.int16) != (x.view(torch.int32) >> 16).to(torch.int16)
    assert up[ties & numbers].float().mean() == pytest.approx(0.5, abs=0.01)  # to even: neither cut off nor away from 0


def test_float32_is_cut_off_where_a_kernel_asks_for_it(kernels):
    x = bits()
    out = torch.empty(1 << 16, dtype=torch.bfloat16, device="npu")
    kernels.converted[(16,)](x.npu(), out, MODE="rtz", BLOCK=1 << 12)
    numbers = ~x.isnan()
    assert torch.equal(out.cpu().view(torch.int16)[numbers], (x.view(torch.int32) >> 16).to(torch.int16)[numbers])


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int32, torch.int64, torch.int8])
def test_conversions_from_and_to_other_dtypes(kernels, kind):
    numbers = torch.arange(-60, 60).to(torch.bfloat16)
    wide = torch.empty(120, dtype=kind, device="npu")
    kernels.converted[(1,)](numbers.npu(), wide, MODE="default", BLOCK=120)
    assert torch.equal(wide.cpu(), numbers.to(kind))
    back = torch.empty(120, dtype=torch.bfloat16, device="npu")
    kernels.converted[(1,)](wide, back, MODE="default", BLOCK=120)
    assert torch.equal(back.cpu(), numbers)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["max", "min", "argmax"])
def test_the_largest_of_negative_numbers(kernels, name, dtype):
    x = -drawn(96, 0, dtype).abs()
    out = torch.empty(1, dtype=torch.int32 if name == "argmax" else dtype, device="npu")
    kernels.reduced[(1,)](x.npu(), out, OPERATION=name, BLOCK=96)
    assert out.cpu()[0] == getattr(x, name)()


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_are_rounded_once(kernels, dtype):
    """A sum that is rounded at each step stays where its ulp is larger than what is added."""
    eps = torch.finfo(dtype).eps
    x = torch.full((256,), eps / 4, dtype=dtype)
    x[0] = 1
    total, so_far = torch.empty(1, dtype=dtype, device="npu"), torch.empty(256, dtype=dtype, device="npu")
    kernels.reduced[(1,)](x.npu(), total, OPERATION="sum", BLOCK=256)
    kernels.summed[(1,)](x.npu(), so_far, BLOCK=256)
    right = torch.cumsum(x.double(), 0)
    assert total.cpu()[0] == right[-1].to(dtype) > 1
    assert torch.equal(so_far.cpu(), right.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "kind", "out_dtype"),
    [
        (torch.bfloat16, "float32", torch.float32),
        (torch.bfloat16, "float32", torch.bfloat16),
        (torch.float16, "float16", torch.float16),
    ],
)
def test_a_product_of_matrices_adds_up_in_float32(kernels, dtype, kind, out_dtype):
    m, k, n = 5, 96, 7
    a, b = drawn(m * k, 0, dtype).view(m, k), drawn(k * n, 1, dtype).view(k, n)
    out = torch.empty(m, n, dtype=out_dtype, device="npu")
    kernels.product[(1,)](a.npu(), b.npu(), out, KIND=getattr(kernels.tl, kind), M=m, K=k, N=n)
    right = a.double() @ b.double()
    bound = right.abs() * torch.finfo(out_dtype).eps / 2 + (a.double().abs() @ b.double().abs()) * k * 2**-24
    assert ((out.cpu().double() - right).abs() <= bound).all()
