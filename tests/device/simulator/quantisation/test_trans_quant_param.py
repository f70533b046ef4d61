"""``npu_trans_quant_param``: bits of scales and offsets, shapes, and what it refuses."""

import struct

import pytest
import torch

from npudiff.device.simulator import OperatorRejected
from npudiff.device.simulator.quantisation.hardware_scales import decoded, shortened

FLAG = 1 << 46


def trans(scale, *arguments, **more):
    return torch.ops.npu.npu_trans_quant_param(scale, *arguments, **more)


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def of_bits(value):
    return struct.unpack("<f", struct.pack("<I", value))[0]


def test_the_lower_bits_are_cut():
    scales = [1.0, 0.1, -0.3, 3e-5, of_bits(0x3F801FFF)]
    assert trans(f32(*scales)).tolist() == [bits(scale) & 0xFFFFE000 | FLAG for scale in scales]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0x3F800FFF, 0x3F800000),
        (0x3F801000, 0x3F800000),  # halfway: to even
        (0x3F801001, 0x3F802000),
        (0x3F803000, 0x3F804000),  # halfway: to even
        (0x3FFFF000, 0x40000000),
        (0xBF801001, 0xBF802000),
    ],
)
def test_or_rounded(given, expected):
    assert trans(f32(of_bits(given)), None, 1).tolist() == [expected | FLAG]
    assert trans(f32(of_bits(given)), None, 0).tolist() == [given & 0xFFFFE000 | FLAG]
    assert shortened(f32(of_bits(given)), nearest=True).item() == of_bits(expected)


@pytest.mark.parametrize(
    ("offset", "integer"), [(3.0, 3), (2.5, 2), (3.5, 4), (-1.0, -1), (-300.0, -256), (300.0, 255), (-0.5, 0)]
)
def test_offsets_have_nine_bits(offset, integer):
    word = trans(f32(1.0), f32(offset))
    assert word.tolist() == [bits(1.0) | FLAG | (integer % 512) << 37]
    scale, decoded_offset = decoded(word)
    assert (scale.tolist(), decoded_offset.tolist()) == ([1.0], [float(integer)])


def test_decoding_takes_any_word_with_a_float_below():
    scale, offset = decoded(torch.tensor([[bits(0.0123), bits(-2.0)]]))
    assert (scale.tolist(), offset.tolist()) == ([f32(0.0123, -2.0).tolist()], [[0.0, 0.0]])


def test_shapes():
    assert trans(f32(1, 2, 3)).shape == (3,)
    assert trans(f32([1, 2, 3])).shape == (1, 3)
    assert trans(f32(1, 2, 3), f32(1)).shape == (3,)
    assert trans(f32(1), f32(1, 2, 3)).shape == (3,)
    assert trans(f32([1, 2, 3]), f32([1, 2, 3])).shape == (1, 3)
    assert trans(f32(1, 2)).dtype == torch.int64


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("scale", "offset", "mode", "message"),
    [
        (f32([1], [2]), None, 0, r"scale was of shape \[2, 1\]; allowed: \[t\] or \[1, n\]"),
        (f32(), None, 0, r"scale was of shape \[0\]; allowed: .*not empty"),
        (f32(1, 2), f32(1, 2, 3), 0, r"offset was of shape \[3\]; allowed: \[2\], as scale, or one of both"),
        (f32([1, 2]), f32(1, 2), 0, r"offset was of shape \[2\]; allowed: \[1, 2\], as scale"),
        (f32([1, 2]), f32([1]), 0, r"offset was of shape \[1, 1\]; allowed: \[1, 2\], as scale"),
        (f32(1, 2), f32(), 0, r"offset was of shape \[0\]"),
        (f32(1), None, 2, "round_mode was 2; allowed: None or 0 or 1"),
    ],
)
def test_rejections(device, scale, offset, mode, message):
    with pytest.raises(OperatorRejected, match=f"npu_trans_quant_param: {message}"):
        trans(scale.to(device), None if offset is None else offset.to(device), mode)


def test_dtypes():
    with pytest.raises(OperatorRejected, match="scale was bfloat16; allowed: float32"):
        trans(f32(1).bfloat16())
    with pytest.raises(OperatorRejected, match="offset was int32; allowed: float32"):
        trans(f32(1), f32(1).int())
