"""``npu_dynamic_quant``: scales, rounding, groups, rows of zeros, and what it refuses."""

import math
from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected, UndefinedBehaviour


def quant(x, **more):
    return torch.ops.npu.npu_dynamic_quant(x, **more)


def half(*rows):
    return torch.tensor(rows, dtype=torch.float16)


def chain(row, largest_integer, round32):
    """The kernel's arithmetic for one row of fractions: what is rounded to an integer, and the scale."""
    factor = round32(Fraction(largest_integer) / max(map(abs, row)))
    return [round(round32(value * factor)) for value in row], round32(1 / factor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"dst_type": torch.int8}, {"dst_type": torch.quint4x2}])
def test_the_kernels_arithmetic_in_fractions(exact, dtype, more):
    x = exact.draw(6, 16, dtype=dtype, scale=3.0)
    y, scale = quant(x, **more)
    largest = 7 if more.get("dst_type") == torch.quint4x2 else 127
    for row, words, factor in zip(exact.fractions(x), y.tolist(), scale.tolist(), strict=True):
        expected, expected_scale = chain(row, largest, exact.round32)
        assert (words if largest == 127 else [value for word in words for value in exact.nibbles(word)]) == expected
        assert Fraction(factor) == expected_scale


def test_the_scale_is_not_the_maximum_over_127(exact):
    """Two roundings: for some rows they differ from one."""
    x = exact.draw(500, 8, dtype=torch.bfloat16)
    scale = quant(x)[1]
    plain = x.float().abs().amax(-1) / 127
    assert not torch.equal(scale, plain)
    assert torch.allclose(scale, plain, rtol=3 * 2**-24, atol=0)


def test_rows_are_multiplied_by_127_over_the_maximum():
    """Every second number is 63.5 but for rounding; divided by either form of the scale other integers come out."""
    x = half([18, 9], [30, 15], [36, 18], [38, 19])
    y, scale = quant(x)
    assert y[:, 1].tolist() == [64, 63, 64, 63]
    for divisor in (scale, x.float()[:, 0] / 127):
        assert (x.float()[:, 1] / divisor).round().tolist() == [63, 64, 63, 64]


@pytest.mark.parametrize(
    ("ties", "expected"),
    [("half_to_even", [127, 0, 2, 2, -2, -4]), ("half_away_from_zero", [127, 1, 2, 3, -3, -4])],
)
def test_halves(exact, ties, expected):
    with exact.changed(dynamic_quant_ties=ties):
        y, scale = quant(half([127, 0.5, 1.5, 2.5, -2.5, -3.5]))
    assert y.tolist() == [expected]
    assert scale.tolist() == [1.0]


def test_shapes_and_dtypes(exact):
    y, scale = quant(exact.draw(2, 3, 8, dtype=torch.bfloat16))
    assert (y.shape, y.dtype, scale.shape, scale.dtype) == ((2, 3, 8), torch.int8, (2, 3), torch.float32)
    y, scale = quant(exact.draw(2, 3, 8, dtype=torch.bfloat16), dst_type=torch.quint4x2)
    assert (y.shape, y.dtype, scale.shape) == ((2, 3, 1), torch.int32, (2, 3))
    y, scale = quant(exact.draw(0, 8, dtype=torch.bfloat16))
    assert (y.shape, scale.shape) == ((0, 8), (0,))


def test_smooth_scales_multiply_in_float32(exact):
    """In float16 the products 600 * 300 would be infinite."""
    y, scale = quant(half([600, -300]), smooth_scales=half(300, 300).view(2))
    assert y.tolist() == [[127, -64]]
    assert Fraction(scale.item()) == exact.round32(1 / exact.round32(Fraction(127, 180000)))


def test_groups_have_rows_of_smooth_scales():
    x = half(*[[2, 1]] * 5)
    smooth = half([1, 1], [1, 4], [0.25, 0])
    y, _ = quant(x, smooth_scales=smooth, group_index=torch.tensor([1, 3, 5], dtype=torch.int32))
    assert y.tolist() == [[127, 64], [64, 127], [64, 127], [127, 0], [127, 0]]
    y, _ = quant(x.view(5, 1, 2), smooth_scales=smooth, group_index=torch.tensor([1, 3, 5], dtype=torch.int32))
    assert y.shape == (5, 1, 2)


@pytest.mark.parametrize(
    ("choice", "expected"), [("zero", [0.0, 1.0, 0.0]), ("one", [1.0, 1.0, 1.0]), ("nan", [math.nan, 1.0, math.nan])]
)
def test_rows_of_zeros(exact, choice, expected):
    with exact.changed(dynamic_quant_zero_row=choice):
        y, scale = quant(half([0, 0], [127, -127], [-0.0, 0]))
    assert y.tolist() == [[0, 0], [127, -127], [0, 0]]
    assert torch.equal(scale.nan_to_num(7), torch.tensor(expected).nan_to_num(7))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([2, 1, 3], "its cumulative ends do not decrease on a legal call"),
        ([-1, 1, 3], "its cumulative ends do not decrease"),
        ([1, 2, 4], "counts 4 rows and there are 3"),
        ([1, 2, 2], "group_index ends with 2 and input has 3 rows"),
    ],
)
def test_ends_that_are_none(ends, message):
    with pytest.raises(UndefinedBehaviour, match=message):
        quant(half(*[[1, 2]] * 3), smooth_scales=half(*[[1, 1]] * 3), group_index=torch.tensor(ends, dtype=torch.int32))


def test_ends_before_the_last_row():
    with pytest.raises(UndefinedBehaviour, match="group_index ends with 2 and input has 3 rows"):
        quant(half(*[[1, 2]] * 3), smooth_scales=half(*[[1, 1]] * 2), group_index=torch.tensor([1, 2]).int())


def test_groups_without_rows():
    smooth = half([9, 9], [1, 1], [9, 9], [1, 4])
    y, _ = quant(half([2, 1], [2, 1]), smooth_scales=smooth, group_index=torch.tensor([0, 1, 1, 2]).int())
    assert y.tolist() == [[127, 64], [64, 127]]


@pytest.mark.parametrize("ends", [[2, 2, 3], [0, 1, 3]])
def test_groups_without_rows_are_a_choice(exact, ends):
    call = {"smooth_scales": half(*[[1, 1]] * 3), "group_index": torch.tensor(ends).int()}
    with (
        exact.changed(dynamic_quant_empty_groups="undefined"),
        pytest.raises(UndefinedBehaviour, match="its cumulative ends increase on a legal call"),
    ):
        quant(half(*[[1, 2]] * 3), **call)


ONE = torch.tensor([2], dtype=torch.int32)


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (half(1, 2).view(2), {}, r"input was of rank 1, \[2\]; allowed: rank 2 to 8 .*ERR01003"),
        (half([1, 2]).float(), {}, "input was float32; allowed: float16 or bfloat16"),
        (
            half([1, 2]),
            {"dst_type": torch.quint4x2},
            r"input was of shape \[1, 2\] with dst_type quint4x2; allowed: a last axis that is a multiple of 8",
        ),
        (half([1, 2]), {"dst_type": torch.uint8}, r"dst_type was 0; allowed: None, 1 \(torch.int8\) or 16"),
        (half([1, 2]), {"quant_mode": "perrow"}, "quant_mode was 'perrow'; allowed: 'pertoken'"),
        (half([1, 2]), {"smooth_scales": half(1, 2).view(2).float()}, "smooth_scales was float32; allowed: float16"),
        (half([1, 2]), {"smooth_scales": half([1, 2])}, r"smooth_scales was of shape \[1, 2\]; allowed: \[2\]"),
        (
            half([1, 2]),
            {"smooth_scales": half(1, 2).view(2), "group_index": ONE},
            r"smooth_scales was of shape \[2\]; allowed: \[1, 2\], \[groups",
        ),
        (
            half([1, 2]),
            {"smooth_scales": half([1, 2]), "group_index": ONE.long()},
            "group_index was int64; allowed: int32",
        ),
        (torch.empty(2, 0, dtype=torch.float16), {}, r"input was of shape \[2, 0\]; allowed: rows with elements"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_dynamic_quant: {message}"):
        quant(x, **more)


@pytest.mark.parametrize(
    ("more", "argument"),
    [
        ({"quant_mode": "pertensor"}, "quant_mode"),
        ({"quant_mode": "perchannel"}, "quant_mode"),
        ({"dst_type_max": 6.0}, "dst_type_max"),
        ({"group_index": ONE}, "group_index"),
    ],
)
def test_not_simulated(more, argument):
    with pytest.raises(NotSimulated, match=f"npu_dynamic_quant: {argument} was"):
        quant(half([1, 2]), **more)
