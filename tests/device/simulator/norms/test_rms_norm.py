"""``npu_rms_norm`` and ``npu_gemma_rms_norm``: values, rounding chains, rejections."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def rms_norm(*arguments, **more):
    return torch.ops.npu.npu_rms_norm(*arguments, **more)


def gemma(*arguments, **more):
    return torch.ops.npu.npu_gemma_rms_norm(*arguments, **more)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(x, gamma, epsilon, axes):
    x, gamma = x.double(), gamma.double()
    mean = (x**2).mean(tuple(range(-axes, 0)), keepdim=True)
    return x * (mean + epsilon) ** -0.5 * gamma, (mean + epsilon) ** -0.5


def test_by_hand():
    # The mean of 49 and 1 is 25; with epsilon 11 the root is 6.
    y, rstd = rms_norm(torch.tensor([[7.0, -1.0]]), torch.tensor([2.0, 3.0]), 0.0)
    assert rstd.tolist() == [[torch.tensor(0.2).item()]]
    assert y.tolist()[0] == pytest.approx([2.8, -0.6])
    y, rstd = rms_norm(torch.tensor([[7.0, -1.0]]), torch.tensor([2.0, 3.0]), epsilon=11.0)
    assert rstd.item() == pytest.approx(1 / 6)
    y, _ = gemma(torch.tensor([[7.0, -1.0]]), torch.tensor([2.0, 3.0]), 0.0)
    assert y.tolist()[0] == pytest.approx([1.4 * 3, -0.2 * 4])


@pytest.mark.parametrize("operator", [rms_norm, gemma])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axes", "rstd_shape"),
    [((5, 48), 1, (5, 1)), ((2, 3, 48), 1, (2, 3, 1)), ((2, 3, 48), 2, (2, 1, 1)), ((48,), 1, (1,))],
)
def test_against_float64(operator, dtype, shape, axes, rstd_shape):
    x, gamma = draw(*shape, dtype=dtype), draw(*shape[-axes:], dtype=dtype, seed=1)
    y, rstd = operator(x, gamma, 1e-5)
    expected, root = exact(x, gamma.double() + (operator is not rms_norm), 1e-5, axes)
    assert (y.shape, y.dtype) == (shape, dtype)
    assert (rstd.shape, rstd.dtype) == (rstd_shape, torch.float32)
    assert ((rstd - root).abs() <= 1e-6 * root).all()
    assert ((y - expected).abs() <= (torch.finfo(dtype).eps / 2 + 2e-6) * expected.abs() + 1e-7).all()


def test_default_epsilon():
    x, one = torch.full((1, 4), 1e-3), torch.ones(4)
    assert rms_norm(x, one)[1].item() == pytest.approx((1e-6 + 1e-6) ** -0.5)
    assert gemma(x, one)[1].item() == pytest.approx((1e-6 + 1e-6) ** -0.5)


@pytest.mark.parametrize(
    ("dtype", "gamma", "once", "twice"),
    [
        # 1.4 is 1.400390625 in float16; times 1.5 it lies half-way between two numbers.
        (torch.float16, 1.5, 2.099609375, 2.1015625),
        # 1.4 is 179/128 in bfloat16; times 129/128 it is 180.4/128, where 1.4 gives 180.6/128.
        (torch.bfloat16, 129 / 128, 181 / 128, 180 / 128),
    ],
)
def test_chains(dtype, gamma, once, twice):
    x, gammas = torch.tensor([[7.0, 1.0]], dtype=dtype), torch.tensor([gamma, 1], dtype=dtype)
    assert rms_norm(x, gammas, 0.0)[0][0, 0].item() == once
    with changed(rms_norm_chain="rounded_before_gamma"):
        assert rms_norm(x, gammas, 0.0)[0][0, 0].item() == twice
        # float32 gamma widens the chain, and gemma has one chain only.
        assert rms_norm(x, gammas.float(), 0.0)[0][0, 0].item() == once
        assert gemma_of(x, gamma) == once
    with use_profile("pessimistic"):
        assert rms_norm(x, gammas, 0.0)[0][0, 0].item() == twice
    assert gemma_of(x, gamma) == once


def gemma_of(x, gamma):
    return gemma(x, torch.tensor([gamma - 1, 0], dtype=x.dtype), 0.0)[0][0, 0].item()


def test_gemma_adds_one_in_float32():
    # x / root is 1, and 1 + 1.5 * 2**-8 is nearer to 1 + 2**-7 than to 1.
    large = torch.tensor([2.0**-8 + 2.0**-9, 0]).bfloat16()
    x = torch.tensor([[5.0, -5.0]]).bfloat16()
    assert gemma(x, large, 0.0)[0][0, 0].item() == 1 + 2.0**-7
    # 7 / 5 * (1 + 2**-8) is 179.9 / 128; with 1 + 2**-8 rounded to 1 it would be 179.2 / 128.
    x = torch.tensor([[7.0, 1.0]]).bfloat16()
    assert gemma(x, torch.tensor([2.0**-8, 0]).bfloat16(), 0.0)[0][0, 0].item() == 180 / 128


def test_the_sum_of_squares_is_scaled_after_it_is_taken():
    # Eight squares of 1e38 overflow; npu_add_rms_norm divides before it sums.
    huge = torch.full((1, 8), 1e19)
    assert rms_norm(huge, torch.ones(8))[1].item() == 0
    assert torch.ops.npu.npu_add_rms_norm(huge, torch.zeros(1, 8), torch.ones(8))[1].item() == pytest.approx(1e-19)


def test_float32_gamma_with_16_bit_input():
    x, gamma = draw(3, 32, dtype=torch.bfloat16), draw(32, seed=1)
    y, _ = rms_norm(x, gamma)
    expected, _ = exact(x, gamma, 1e-6, 1)
    assert y.dtype == torch.bfloat16
    assert ((y - expected).abs() <= 2.0**-8 * expected.abs() + 1e-6).all()


def test_no_rows():
    y, rstd = rms_norm(torch.ones(0, 8), torch.ones(8))
    assert (y.shape, rstd.shape) == ((0, 8), (0, 1))


@pytest.mark.parametrize("operator", [rms_norm, gemma])
@pytest.mark.parametrize(
    ("x", "gamma", "message"),
    [
        (torch.ones(2, 8).double(), torch.ones(8), "input was float64; allowed: float16 or bfloat16 or float32"),
        (torch.ones(2, 8).half(), torch.ones(8).bfloat16(), "gamma was bfloat16; allowed: float16 or float32"),
        (torch.ones(2, 8), torch.ones(8).half(), "gamma was float16; allowed: float32 "),
        (torch.ones(2, 8), torch.ones(4), r"gamma was of shape \[4\]; allowed: the last axes of input"),
        (torch.ones(2, 8), torch.ones(2), r"gamma was of shape \[2\]"),
        (torch.ones(8), torch.ones(1, 8), r"gamma was of shape \[1, 8\]"),
        (torch.ones(2, 8), torch.ones(()), r"gamma was of rank 0, \[\]; allowed: rank 1 to 8"),
        (
            torch.ones([1] * 8 + [8]),
            torch.ones(8),
            r"input was of rank 9, \[1, 1, 1, 1, 1, 1, 1, 1, 8\]; allowed: rank 1 to 8",
        ),
    ],
)
def test_rejections(operator, x, gamma, message):
    with pytest.raises(OperatorRejected, match=f"npu_(gemma_)?rms_norm: {message}"):
        operator(x, gamma)


def test_gemma_refuses_more():
    with pytest.raises(OperatorRejected, match="gamma was float32; allowed: float16, as input"):
        gemma(torch.ones(2, 8).half(), torch.ones(8))
    with pytest.raises(OperatorRejected, match=r"input was empty, of shape \[0, 8\]"):
        gemma(torch.ones(0, 8), torch.ones(8))
    x = draw(8, 2).mul(4).round().transpose(0, 1)  # sums of integers are exact, in whatever order a CPU takes rows
    assert torch.equal(gemma(x, torch.ones(8))[0], gemma(x.contiguous(), torch.ones(8))[0])
    with changed(non_contiguous="rejected"), pytest.raises(OperatorRejected, match="input was not contiguous"):
        gemma(x, torch.ones(8))
