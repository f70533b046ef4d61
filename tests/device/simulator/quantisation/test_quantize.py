"""``npu_quantize``: division and multiplication, rounding, axes, and what it refuses."""

from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.cache.physical import physical
from npudiff.device.simulator.quantisation.integers import packed

NZ = 29


def quantize(x, scales, zero_points=None, dtype=torch.qint8, **more):
    return torch.ops.npu.npu_quantize(x, scales, zero_points, dtype, **more)


def multiply(x, scales, zero_points=None, dtype=torch.qint8, axis=-1):
    return quantize(x, scales, zero_points, dtype, axis=axis, div_mode=False)


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def clamp(value, least, most):
    return max(least, min(most, value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_division_in_fractions(exact, dtype):
    x, scales = exact.draw(5, 8, dtype=dtype, scale=40.0), exact.draw(8).abs() + 0.1
    zero_points = exact.integers(8, dtype=torch.int32)
    expected = [
        [
            clamp(round(exact.round32(value / scale)) + zero_point, -128, 127)
            for value, scale, zero_point in zip(values, exact.fractions(scales), zero_points.tolist(), strict=True)
        ]
        for values in exact.fractions(x)
    ]
    output = quantize(x, scales, zero_points)
    assert output.dtype == torch.int8
    assert output.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_multiplication_in_fractions(exact, dtype):
    """A product and a sum, each rounded to float32."""
    x, scales, zeros = (exact.draw(*s, dtype=dtype, scale=9.0, seed=i) for i, s in enumerate([(5, 8), (8,), (8,)]))
    expected = [
        [
            clamp(round(exact.round32(exact.round32(value * scale) + zero)), -128, 127)
            for value, scale, zero in zip(values, exact.fractions(scales), exact.fractions(zeros), strict=True)
        ]
        for values in exact.fractions(x)
    ]
    assert multiply(x, scales, zeros).tolist() == expected


def test_product_and_sum_are_rounded_apart():
    """Together, as a fused multiply-add has it, this is above the half."""
    x, scale, zero = 1 + 2.0**-12, 1 + 2.0**-12, -0.5 - 2.0**-11
    assert Fraction(x) * Fraction(scale) + Fraction(zero) > Fraction(1, 2)
    assert multiply(row(x), torch.tensor([scale]), torch.tensor([zero])).tolist() == [[0]]


def test_halves(exact):
    x = row(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)
    even = [[-2, -2, 0, 0, 2, 2]]
    assert quantize(x, torch.ones(1)).tolist() == even
    assert multiply(x, torch.ones(1)).tolist() == even
    with exact.changed(quantize_ties="half_away_from_zero"):
        assert quantize(x, torch.ones(1)).tolist() == even
        assert multiply(x, torch.ones(1)).tolist() == [[-3, -2, -1, 1, 2, 3]]


def test_the_zero_point_is_added_after_rounding_or_before():
    """0.5 rounds to 0 and 1.5 to 2: with a zero point of 1 the two modes differ."""
    assert quantize(row(0.5), torch.ones(1), torch.ones(1).int(), axis=0).tolist() == [[1]]
    assert multiply(row(0.5), torch.ones(1), torch.ones(1)).tolist() == [[2]]


@pytest.mark.parametrize(
    ("dtype", "result", "expected"),
    [
        (torch.qint8, torch.int8, [-128, -3, 127]),
        (torch.int8, torch.int8, [-128, -3, 127]),
        (torch.quint8, torch.uint8, [0, 0, 255]),
        (torch.uint8, torch.uint8, [0, 0, 255]),
        (torch.qint32, torch.int32, [-(2**31), -3, 2**31 - 1]),
        (torch.int32, torch.int32, [-(2**31), -3, 2**31 - 1]),
    ],
)
def test_dtypes_and_saturation(dtype, result, expected):
    output = quantize(row(-1e12, -3, 1e12), torch.ones(1), dtype=dtype)
    assert (output.dtype, output.tolist()) == (result, [expected])


def test_large_integers_keep_their_zero_point():
    """2^24 + 1 is no float32."""
    output = quantize(row(2.0**24, 0), torch.ones(1), torch.ones(1).int(), torch.qint32)
    assert output.tolist() == [[2**24 + 1, 1]]


def test_axes_of_division():
    x = torch.tensor([[[8.0, 8.0], [8.0, 8.0]]])
    scales = torch.tensor([1.0, 2.0])
    assert quantize(x, scales).tolist() == [[[8, 8], [4, 4]]]  # axis 1
    for axis in (2, -1):
        assert quantize(x, scales, axis=axis).tolist() == [[[8, 4], [8, 4]]]
    assert quantize(x, scales.view(1, 2, 1)).tolist() == [[[8, 8], [4, 4]]]
    assert quantize(x, torch.tensor([4.0])).tolist() == [[[2, 2], [2, 2]]]


def test_axes_of_multiplication():
    x = torch.tensor([[[8.0, 8.0], [8.0, 8.0]]])
    scales = torch.tensor([1.0, 2.0])
    assert multiply(x, scales, axis=-2).tolist() == [[[8, 8], [16, 16]]]
    for axis in (-1, 0, 1, 2):
        assert multiply(x, scales, axis=axis).tolist() == [[[8, 16], [8, 16]]]
    assert multiply(x, scales.view(1, 2, 1), axis=-2).tolist() == [[[8, 8], [16, 16]]]


def test_words_of_int4(exact):
    x = exact.draw(2, 3, 16, scale=5.0)
    output = multiply(x, torch.full((1,), 2.0), dtype=torch.quint4x2)
    assert (output.shape, output.dtype) == ((2, 3, 2), torch.int32)
    expected = [clamp(round(value * 2), -8, 7) for value in exact.fractions(x)[1][2]]
    assert [value for word in output[1, 2].tolist() for value in exact.nibbles(word)] == expected


def test_tiles_of_int4_are_64_wide(exact):
    values = exact.integers(2, 32, 128, low=-8, high=8)
    weight = torch.ops.npu.npu_format_cast(values.float(), NZ)
    output = torch.ops.npu.npu_quantize(weight, torch.ones(1), None, torch.quint4x2, -1, False)
    # By hand: [E, N / 64, K / 16, 16, 64], and eight of 64 in a word.
    tiles = values.reshape(2, 2, 16, 2, 64).permute(0, 3, 1, 2, 4)
    assert torch.equal(physical(output), packed(tiles.contiguous()))
    assert torch.equal(output, packed(values))


def test_a_weight_in_nz_stays_in_nz(exact):
    weight = exact.integers(2, 256, 8, low=-8, high=8, dtype=torch.float32)
    plain = multiply(weight, torch.ones(1), dtype=torch.quint4x2)
    cast = torch.ops.npu.npu_format_cast(weight, NZ)
    output = multiply(cast, torch.ones(1), dtype=torch.quint4x2)
    assert format_of(output) == Format.FRACTAL_NZ
    assert format_of(plain) == Format.ND
    assert torch.equal(output, plain)
    with pytest.raises(NotSimulated, match=r"input was float32 of shape \[2, 256, 8\] in FRACTAL_NZ"):
        multiply(cast, torch.ones(1))


def test_scales_may_have_to_be_of_the_dtype_of_input(exact):
    x = row(1, 2).bfloat16()
    assert multiply(x, torch.ones(1)).tolist() == [[1, 2]]
    with exact.changed(quantize_scales="as_input"), pytest.raises(OperatorRejected, match="scales was float32"):
        multiply(x, torch.ones(1))


def test_empty_tensors():
    assert quantize(torch.empty(0, 4), torch.ones(4)).shape == (0, 4)
    assert multiply(torch.empty(0, 8), torch.ones(8), dtype=torch.quint4x2).shape == (0, 1)


ONES = torch.ones(1)
X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(X.double(), ONES), "input was float64; allowed: float16 or bfloat16 or float32"),
        (lambda: quantize(torch.tensor(1.0), ONES), r"input was of rank 0, \[\]; allowed: rank 1 to 8"),
        (lambda: quantize(X, ONES, dtype=torch.quint4x2), "dtype was 16; allowed: 12, 1, 13, 0, 14, 3 .*True"),
        (lambda: multiply(X, ONES, dtype=torch.quint8), "dtype was 13; allowed: 12, 1, 16 .* with div_mode False"),
        (lambda: quantize(X, ONES.half()), "scales was float16; allowed: float32 or bfloat16"),
        (lambda: quantize(X, torch.ones(3)), r"scales was of shape \[3\]; allowed: \[1\] or \[4\]"),
        (lambda: quantize(X, torch.ones(2, 4)), r"scales was of shape \[2, 4\]"),
        (lambda: quantize(X, ONES, ONES), "zero_points was float32; allowed: int8 or uint8 or int32 or bfloat16"),
        (lambda: quantize(X, ONES, torch.ones(4).int()), r"zero_points was of shape \[4\]; allowed: \[1\], as scales"),
        (lambda: quantize(X, ONES, axis=2), "axis was 2; allowed: -2 to 1"),
        (lambda: multiply(X, ONES, axis=-3), "axis was -3; allowed: -2 to 1 with div_mode False"),
        (lambda: multiply(X, ONES, axis=2), "axis was 2; allowed: -2 to 1 with div_mode False"),
        (lambda: multiply(X[0], ONES, axis=-2), "axis was -2; allowed: -1 to 0"),
        (lambda: multiply(X, ONES, ONES.half()), "zero_points was float16; allowed: float32"),
        (lambda: multiply(X, ONES, dtype=torch.quint4x2), r"input was of shape \[2, 4\] with dtype quint4x2; .*of 8"),
    ],
)
def test_rejections(call, message):
    with pytest.raises(OperatorRejected, match=f"npu_quantize: {message}"):
        call()
