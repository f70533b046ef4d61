"""Norms that quantise: their formulas in float64, where they round, what is not written, and what they refuse."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile
from npudiff.device.simulator.quantisation.integers import unpacked

OPS = torch.ops.npu
DTYPES = [torch.float16, torch.bfloat16]


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def norm(x, gamma, beta, epsilon=1e-6):
    """Normalise in float64 over the axes of gamma."""
    axes = tuple(range(-gamma.dim(), 0))
    y = x * ((x**2).mean(axes, keepdim=True) + epsilon).rsqrt() * gamma.double()
    return y if beta is None else y + beta.double()


def close(integers, exact, error, low=-128, high=127):
    """Whether integers are what exact numbers round to, each of them by at most an error wrong."""
    lowest, highest = ((exact + sign * error).round().clamp(low, high) for sign in (-1, 1))
    return ((lowest <= integers) & (integers <= highest)).all() and (integers == exact.round()).double().mean() > 0.9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 4, 16)])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("div_mode", [True, False])
def test_add_rms_norm_quant_against_float64(dtype, shape, axes, div_mode):
    x1, x2 = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    gamma, beta, *scales = (draw(*shape[-axes:], dtype=dtype, seed=seed) for seed in range(2, 6))
    scales = [(one.double().abs() + 0.5).mul(0.05 if div_mode else 20) for one in scales]
    scales = [one.to(torch.float32 if dtype == torch.float16 else dtype) for one in scales]
    zeros = (draw(*gamma.shape, dtype=torch.float32, seed=7) * 9).round()
    zeros = zeros.to(torch.int32 if dtype == torch.float16 else dtype)
    y1, y2, x = OPS.npu_add_rms_norm_quant(x1, x2, gamma, scales[0], zeros, beta, scales[1], div_mode=div_mode)
    assert [(one.dtype, one.shape) for one in (y1, y2, x)] == [
        (one, x1.shape) for one in (torch.int8, torch.int8, dtype)
    ]
    assert torch.equal(x, (x1.double() + x2.double()).to(dtype))
    stored = x.double()  # with beta, both dtypes normalise what is stored
    y = norm(stored, gamma, beta)
    error = 2 * 2.0**-11 * (y - beta.double()).abs() if dtype == torch.float16 else torch.zeros(())
    for given, one, offset in ((y1, scales[0], zeros.double()), (y2, scales[1], 0.0)):
        factor = 1 / one.double() if div_mode else one.double()
        exact = y * factor + offset
        assert close(given, exact, error * factor + 4e-5)


def test_the_second_output_is_not_written_without_its_scales():
    x, gamma = draw(2, 8, dtype=torch.float16), torch.ones(8).half()
    for more in ({}, {"zero_points2": torch.ones(8).int()}):
        assert (OPS.npu_add_rms_norm_quant(x, x, gamma, torch.ones(8), None, **more)[1] == 0x5A).all()


def test_float16_multiplies_by_gamma_in_float16_and_bfloat16_in_float32():
    # 7 and 1 have the root mean square 5. 1.4 in float16 is 1.400390625, times 1.5 in float16 is 2.1015625.
    x1, x2, gamma = torch.tensor([[3.0, 3.0]]), torch.tensor([[4.0, -2.0]]), torch.tensor([1.5, 1])
    factor = torch.tensor([2**10, 1.0])  # 2.1 and 2.1015625 are different there, modulo a zero point
    zeros = torch.tensor([-2150, 0]).int()

    def first(chain):
        with changed(add_rms_norm_quant_chain=chain):
            arguments = (x1.half(), x2.half(), gamma.half(), factor, zeros)
            return OPS.npu_add_rms_norm_quant(*arguments, epsilon=0.0, div_mode=False)[0][0, 0].item()

    assert first("kernel") == 2152 - 2150
    assert first("float32") == 2150 - 2150


def test_bfloat16_normalises_the_sum_before_it_is_rounded_unless_there_is_a_beta():
    # 257 is no bfloat16 number. The root mean square of 257 and 256 is not that of 256 twice.
    x1, x2 = torch.tensor([[256.0, 0.0]]).bfloat16(), torch.tensor([[1.0, 256.0]]).bfloat16()
    ones, scale = torch.ones(2).bfloat16(), torch.full((2,), 2.0**14).bfloat16()
    shift = -scale  # so that 1 becomes 0, and 256 / 256.5 what is 32 less

    def first(chain, beta):
        with changed(add_rms_norm_quant_chain=chain):
            y = OPS.npu_add_rms_norm_quant(x1, x2, ones, scale, shift, beta, epsilon=0.0, div_mode=False)
        assert y[2].tolist() == [[256, 256]]
        return y[0].tolist()

    assert first("kernel", None) == [[32, -32]]
    assert first("kernel", 0 * ones) == [[0, 0]]
    assert first("float32", 0 * ones) == [[32, -32]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("y_dtype", [None, torch.int8, torch.quint4x2])
@pytest.mark.parametrize("with_beta", [False, True])
def test_add_rms_norm_dynamic_quant_against_float64(dtype, y_dtype, with_beta):
    x1, x2 = draw(2, 3, 16, dtype=dtype), draw(2, 3, 16, dtype=dtype, seed=1)
    gamma, beta, *smooth = (draw(16, dtype=dtype, seed=seed) for seed in range(2, 6))
    beta = beta if with_beta else None
    y1, y2, x, scale1, scale2 = OPS.npu_add_rms_norm_dynamic_quant(
        x1, x2, gamma, smooth_scale1=smooth[0], smooth_scale2=smooth[1], beta=beta, y_dtype=y_dtype
    )
    total = x1.double() + x2.double()
    assert torch.equal(x, total.to(dtype))
    largest = 7 if y_dtype == torch.quint4x2 else 127
    for y, scale, factor in ((y1, scale1, smooth[0]), (y2, scale2, smooth[1])):
        exact = norm(total, gamma, beta) * factor.double()  # of the sum that is not rounded
        expected = exact.abs().amax(-1) / largest
        assert scale.dtype == torch.float32
        assert ((scale - expected).abs() <= 1e-6 * expected).all()
        integers = unpacked(y) if largest == 7 else y
        assert close(integers, exact / expected.unsqueeze(-1), 1e-4, -largest - 1, largest)


def test_rows_of_dynamic_quant_are_multiplied_by_127_over_the_maximum():
    """As npu_dynamic_quant does: 63.5 or rounding of it; a row of zeros has scale 0."""
    x = torch.tensor([[18.0, 9], [30, 15], [36, 18], [0, 0]]).half()
    y, _, _, scale, _ = OPS.npu_add_rms_norm_dynamic_quant(x, 0 * x, torch.ones(2).half(), epsilon=1e-6)
    assert y[:, 0].tolist() == [127, 127, 127, 0]
    assert scale[3] == 0
    largest = (x.float() / (x.float() ** 2).mean(-1, keepdim=True).sqrt()).amax(-1)[:3]
    assert torch.allclose(scale[:3], largest / 127, rtol=1e-6)


@pytest.mark.parametrize(
    ("smooth", "mask", "wanted"),
    [
        ((), None, (True, False)),
        ((1,), None, (True, False)),
        ((1, 2), None, (True, True)),
        ((), [True, True], (True, True)),
        ((), [False, True], (False, True)),
        ((2,), [False, True], (False, True)),
        ((1,), [True, False], (True, False)),
    ],
)
def test_which_pairs_are_written(smooth, mask, wanted):
    x, row = draw(2, 8, dtype=torch.float16), draw(8, dtype=torch.float16, seed=1)
    more = {f"smooth_scale{number}": row for number in smooth}
    y1, y2, _, scale1, scale2 = OPS.npu_add_rms_norm_dynamic_quant(x, x, row, output_mask=mask, **more)
    for one, y, scale in ((wanted[0], y1, scale1), (wanted[1], y2, scale2)):
        assert (y.shape, scale.shape) == (((2, 8), (2,)) if one else ((), ()))
        assert one or (y.item() == 0x5A and scale > 1e15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16)])
def test_rms_norm_quant_against_float64(dtype, words, shape):
    x, gamma, beta = (draw(*one, dtype=dtype, seed=seed) for seed, one in enumerate((shape, (16,), (1, 16))))
    scale, offset = torch.tensor([0.4 if words else 0.03], dtype=dtype), torch.tensor([-2], dtype=torch.int8)
    y = OPS.npu_rms_norm_quant(x, gamma, beta, scale, offset, dst_dtype=torch.quint4x2 if words else None)
    assert y.dtype == (torch.int32 if words else torch.int8)
    exact = norm(x.double(), gamma, beta.view(16)) / scale.double() - 2
    integers = unpacked(y) if words else y
    assert close(integers, exact, 2.0**-11 * exact.abs() + 1e-4, *((-8, 7) if words else (-128, 127)))


def test_rms_norm_quant_rounds_to_float16_on_the_way():
    # 1 and 1 are normalised to 1. 100.5 + 2^-5 would be 101; float16 has it as 100.5, which goes to the even 100.
    x, scale = torch.ones(1, 2).half(), torch.ones(1).half()
    gamma, beta = torch.tensor([100.5, 1]).half(), torch.tensor([2.0**-6, 0]).half()
    offset = torch.zeros(1, dtype=torch.int8)
    assert OPS.npu_rms_norm_quant(x, gamma, beta, scale, offset, 0.0).tolist() == [[100, 1]]


@pytest.mark.parametrize(("choice", "expected"), [("divides", 8), ("multiplies", 2)])
def test_whether_the_scale_of_rms_norm_quant_divides_is_a_choice(choice, expected):
    x, zero = torch.ones(1, 2).half(), torch.zeros(1, dtype=torch.int8)
    with changed(rms_norm_quant_scale=choice):
        y = OPS.npu_rms_norm_quant(x, 4 * x[0], 0 * x[0], torch.tensor([0.5]).half(), zero, 0.0)
    assert y.tolist() == [[expected, expected]]


ROW, BFLOAT, ONES = torch.ones(8).half(), torch.ones(8).bfloat16(), torch.ones(8)
X = torch.ones(2, 8).half()
QUANT, DYNAMIC, RMS = "npu_add_rms_norm_quant", "npu_add_rms_norm_dynamic_quant", "npu_rms_norm_quant"
OFFSET = torch.zeros(1, dtype=torch.int8)


@pytest.mark.parametrize(
    ("name", "arguments", "more", "message"),
    [
        (QUANT, (X, X, ROW, ONES, None), {"axis": 0}, "axis was 0; allowed: -1 .ERR01003.: axis only support -1."),
        (QUANT, (X.float(), X.float(), ONES, ONES, None), {}, "x1 was float32; allowed: float16 or bfloat16"),
        (QUANT, (X, X, ONES, ONES, None), {}, "gamma was float32; allowed: float16, as x1"),
        (QUANT, (X, X[:1], ROW, ONES, None), {}, r"x2 was of shape \[1, 8\]; allowed: \[2, 8\], as x1"),
        (QUANT, (X, X.bfloat16(), ROW, ONES, None), {}, "x2 was bfloat16; allowed: float16, as x1"),
        (QUANT, (X, X, ROW[:4], ONES, None), {}, r"gamma was of shape \[4\]; allowed: the last axes of x1"),
        (QUANT, (X, X, ROW, ROW, None), {}, "scales1 was float16; allowed: float32"),
        (QUANT, (X, X, ROW, ONES[:1], None), {}, r"scales1 was of shape \[1\]; allowed: \[8\], as gamma"),
        (QUANT, (X, X, ROW, ONES, ONES), {}, "zero_points1 was float32; allowed: int32"),
        (QUANT, (X, X, ROW, ONES, None), {"scales2": ROW}, "scales2 was float16; allowed: float32"),
        (QUANT, (X, X, ROW, ONES, None), {"zero_points2": ONES}, "zero_points2 was float32; allowed: int32"),
        (QUANT, (X, X, ROW, ONES, None), {"beta": ROW[:1]}, r"beta was of shape \[1\]; allowed: \[8\], as gamma"),
        (QUANT, (X.bfloat16(), X.bfloat16(), BFLOAT, ONES, None), {}, "scales1 was float32; allowed: bfloat16"),
        (DYNAMIC, (X, X, ROW), {"output_mask": [False, False]}, "output_mask was .*at least one of y1 and y2 must be"),
        (DYNAMIC, (ROW, ROW, ROW), {}, r"x1 was of rank 1, \[8\]; .*: The x1 should be in 2~8D"),
        (DYNAMIC, (X, ROW, ROW), {}, r"x2 was of rank 1.*: The x2 should be in 2~8D"),
        (DYNAMIC, (X, X[:1], ROW), {}, r"x2 was of shape .*: The shape of x1 and x2 must be the same"),
        (DYNAMIC, (X[:, :4], X[:, :4], ROW[:4]), {"y_dtype": torch.quint4x2}, "x1 was .*must be divisible by 8 if y"),
        (DYNAMIC, (X.float(), X.float(), ONES), {}, "x1 was float32; allowed: float16 or bfloat16"),
        (DYNAMIC, (X[:0], X[:0], ROW), {}, "x1 was empty"),
        (DYNAMIC, (X, X, ONES), {}, "gamma was float32; allowed: float16, as x1"),
        (DYNAMIC, (X, X, X), {}, r"gamma was of shape \[2, 8\]; allowed: \[8\]"),
        (DYNAMIC, (X, X, ROW), {"beta": ROW[:1]}, r"beta was of shape \[1\]"),
        (DYNAMIC, (X, X, ROW), {"smooth_scale1": ROW, "output_mask": [False, True]}, "smooth_scale1 was given"),
        (DYNAMIC, (X, X, ROW), {"smooth_scale2": ROW, "output_mask": [True, False]}, "smooth_scale2 was given"),
        (DYNAMIC, (X, X, ROW), {"smooth_scale2": ROW}, "smooth_scale2 was given; allowed: None where pair 2"),
        (RMS, (X[:, :4], ROW[:4], ROW[:4], ROW[:1], OFFSET), {"dst_dtype": torch.quint4x2}, "x was .* must be divd"),
        (RMS, (X.float(), ONES, ONES, ONES[:1], OFFSET), {}, "x was float32; allowed: float16 or bfloat16"),
        (RMS, (X[:0], ROW, ROW, ROW[:1], OFFSET), {}, "x was empty"),
        (RMS, (X, ONES, ROW, ROW[:1], OFFSET), {}, "gamma was float32; allowed: float16, as x"),
        (RMS, (X, X, ROW, ROW[:1], OFFSET), {}, r"gamma was of shape \[2, 8\]; allowed: \[8\] or \[1, 8\]"),
        (RMS, (X, ROW, ROW, ONES[:1], OFFSET), {}, "scale was float32; allowed: float16"),
        (RMS, (X, ROW, ROW, ROW, OFFSET), {}, r"scale was of shape \[8\]; allowed: \[1\]"),
        (RMS, (X, ROW, ROW, ROW[:1], ROW[:1]), {}, "offset was float16; allowed: int8"),
    ],
)  # fmt: skip
def test_rejections(name, arguments, more, message):
    with pytest.raises(OperatorRejected, match=f"{name}: {message}"):
        getattr(OPS, name)(*arguments, **more)


@pytest.mark.parametrize(
    ("name", "arguments", "more"),
    [
        (QUANT, (X, X, ROW, ONES, None), {"dst_type": 292}),
        (DYNAMIC, (X, X, ROW), {"y_dtype": 291}),
        (RMS, (X, ROW, ROW, ROW[:1], OFFSET), {"dst_dtype": 292}),
    ],
)
def test_dtypes_of_ascend_950_are_not_simulated(name, arguments, more):
    with pytest.raises(NotSimulated, match=f"{name}: .*type was 29"):
        getattr(OPS, name)(*arguments, **more)
