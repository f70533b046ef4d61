"""``npu_dynamic_quant_asymmetric``: the kernel's arithmetic, groups, rows without a range, and what it refuses."""

from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected, UndefinedBehaviour
from npudiff.device.simulator.quantisation.integers import unpacked


def quant(x, **more):
    return torch.ops.npu.npu_dynamic_quant_asymmetric(x, **more)


def half(*rows):
    return torch.tensor(rows, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dst_type", [None, torch.int8, torch.quint4x2])
def test_the_kernels_arithmetic_in_fractions(exact, dtype, dst_type):
    x = exact.draw(6, 16, dtype=dtype, scale=3.0) + 2
    y, scale, offset = quant(x, dst_type=dst_type)
    high, steps = (7, 15) if dst_type == torch.quint4x2 else (127, 255)
    integers = unpacked(y) if high == 7 else y
    round32 = exact.round32
    for row, words, one, shift in zip(
        exact.fractions(x), integers.tolist(), scale.tolist(), offset.tolist(), strict=True
    ):
        expected = round32(round32(max(row) - min(row)) / steps)
        summand = round32(high - round32(max(row) / expected))
        assert (Fraction(one), Fraction(shift)) == (expected, summand)
        inverse = round32(1 / expected)
        assert words == [round(round32(round32(value * inverse) + summand)) for value in row]


@pytest.mark.parametrize(("dst_type", "low", "high"), [(None, -128, 127), (torch.quint4x2, -8, 7)])
def test_the_smallest_and_the_largest_number_become_the_limits(exact, dst_type, low, high):
    x = exact.draw(50, 16, dtype=torch.float16) - 1
    y, scale, offset = quant(x, dst_type=dst_type)
    y = unpacked(y) if dst_type else y
    assert ((y.amin(-1) == low) & (y.amax(-1) == high)).all()
    # Documented: x is (y - offset) * scale, up to half a step.
    back = (y.double() - offset.double().unsqueeze(-1)) * scale.double().unsqueeze(-1)
    assert ((back - x.double()).abs() <= (0.5 + 1e-4) * scale.double().unsqueeze(-1)).all()


def test_a_row_without_a_range_has_the_smallest_scale():
    y, scale, offset = quant(half([0, 0], [3, 3], [-1, -1]))
    assert torch.equal(scale, torch.full((3,), 1e-12))
    assert offset[0] == 127
    assert (offset[1:].sign().tolist(), (offset[1:].abs() > 9e11).all()) == ([-1, 1], True)
    assert y[0].tolist() == [127, 127]


def test_smooth_scales_and_groups():
    x, smooth = half(*[[2, 1]] * 5), half([1, 1], [1, 4], [0.25, 0])
    y, scale, _ = quant(x, smooth_scales=smooth, group_index=torch.tensor([1, 3, 5], dtype=torch.int32))
    assert y.tolist() == [[127, -128], [-128, 127], [-128, 127], [127, -128], [127, -128]]
    assert torch.allclose(scale * 255, torch.tensor([1, 2, 2, 0.5, 0.5]))
    y, scale, offset = quant(x.view(5, 1, 2), smooth_scales=smooth[1])
    assert (y.shape, scale.shape, offset.shape) == ((5, 1, 2), (5, 1), (5, 1))
    # In float16 the products 600 * 300 would be infinite.
    assert quant(half([600, 0]), smooth_scales=half(300, 300).view(2))[1].item() == pytest.approx(180000 / 255)


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (half(1, 2).view(2), {}, "input was of rank 1.*ERR01003.: Input shape dim should be greater than 1"),
        (half([1, 2]), {"dst_type": torch.quint4x2}, "input was .*ERR01003.: Input shape last dim must be divded by 8"),
        (half([1, 2]).float(), {}, "input was float32; allowed: float16 or bfloat16"),
        (half([1, 2]), {"smooth_scales": half(1, 2).view(2).float()}, "smooth_scales was float32; allowed: float16"),
        (half([1, 2]), {"dst_type": torch.uint8}, "dst_type was 0; allowed: None"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_dynamic_quant_asymmetric: {message}"):
        quant(x, **more)


def test_what_is_not_simulated_and_what_is_undefined():
    with pytest.raises(NotSimulated, match="npu_dynamic_quant_asymmetric: quant_mode was 'perchannel'"):
        quant(half([1, 2]), quant_mode="perchannel")
    with pytest.raises(
        UndefinedBehaviour, match="npu_dynamic_quant_asymmetric: group_index ends with 1 and input has 2"
    ):
        quant(half([1, 2], [1, 2]), smooth_scales=half([1, 1]), group_index=torch.tensor([1]).int())
