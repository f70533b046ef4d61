from __future__ import annotations

import struct
from fractions import Fraction

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.scale_pack import ScalePackInputs, cut_to_19_bits, scale_pack


def packed(scale, form="bits", offset=None, mode=0):
    return scale_pack(ScalePackInputs(scale, offset, form, mode))["packed"]


def pattern(number):
    return int.from_bytes(struct.pack("<f", number), "little")


def some(count=200):
    """Finite numbers of every size and sign."""
    words = torch.from_numpy(Stream(4, "bits").random_uint64(count).astype("int64") >> 20).to(torch.int32)
    numbers = words.view(torch.float32)
    return torch.where(numbers.isfinite() & (numbers.abs() < 1e38), numbers, 0.1)


def test_numbers_by_hand():
    assert packed(torch.tensor([0.0123, 1.0, 0.0])).value.tolist() == [1011451376, 0x3F800000, 0]
    assert packed(torch.tensor([-1.0, -0.0])).value.tolist() == [0xBF800000, 0x80000000]
    fixpipe = packed(torch.tensor([1.0]), "fixpipe", torch.tensor([-1.0])).value.item()
    assert fixpipe == 0x3F800000 | 1 << 46 | 0x1FF << 37
    assert packed(torch.tensor([1.0]), "fixpipe", torch.tensor([3.0])).value.item() == 0x3F800000 | 1 << 46 | 3 << 37


def test_bits_are_those_of_struct():
    numbers = some()
    assert bool((numbers < 0).any())
    expected = packed(numbers)
    assert expected.value.tolist() == [pattern(number) for number in numbers.tolist()]
    assert expected.dtype == torch.int64
    assert not bool(expected.bound.any())


def test_cutting_never_makes_a_scale_larger_and_rounding_takes_the_nearest():
    for number in some(100).tolist():
        scale = torch.tensor([number])
        results = {}
        for mode in (0, 1):
            word = packed(scale, "fixpipe", mode=mode).value.item()
            assert word >> 32 == 1 << 14
            assert word % 2**13 == 0 or pattern(number) % 2**13 == 2**12
            results[mode] = Fraction(struct.unpack("<f", (word % 2**32).to_bytes(4, "little"))[0])
        exact = Fraction(number)
        step = Fraction(struct.unpack("<f", (pattern(abs(number)) // 2**13 * 2**13 + 2**13).to_bytes(4, "little"))[0])
        step -= abs(results[0])
        assert 0 <= abs(exact) - abs(results[0]) < step
        assert abs(exact - results[1]) <= step / 2
        assert torch.equal(cut_to_19_bits(scale).double(), torch.tensor([float(results[0])]).double())


def test_a_carry_reaches_the_exponent():
    almost_two = torch.tensor([2.0 - 2.0**-23])
    assert packed(almost_two, "fixpipe", mode=1).value.item() == pattern(2.0) | 1 << 46
    assert packed(almost_two, "fixpipe", mode=0).value.item() == pattern(2.0) - 2**13 | 1 << 46


def test_offsets_are_rounded_to_even_and_limited_to_nine_bits():
    offsets = torch.tensor([0.5, 1.5, -0.5, -1.5, 255.5, 300.0, -256.5, -300.0, 7.0])
    right = [0, 2, 0, -2, 255, 255, -256, -256, 7]
    words = packed(torch.ones(1), "fixpipe", offsets).value.tolist()
    assert [word >> 37 & 0x1FF for word in words] == [offset % 512 for offset in right]
    assert all(word % 2**37 == pattern(1.0) and word >> 46 == 1 for word in words)


def test_halves_may_go_either_way_where_rounding_was_asked_for_and_nothing_else_may():
    """No source says to which side: a choice, which the bound says."""
    half = torch.tensor([pattern(1.0) | 2**12], dtype=torch.int32).view(torch.float32)
    for mode, allowed in ((0, [0]), (1, [0, 2**13])):
        expected = {"packed": packed(half, "fixpipe", mode=mode)}
        for more in (-(2**13), 0, 2**13, 2**14):
            actual = {"packed": torch.tensor([pattern(1.0) + more | 1 << 46])}
            assert compare(expected, actual).holds == (more in allowed), (mode, more)
    near = torch.tensor([pattern(1.0) | 2**12 + 1], dtype=torch.int32).view(torch.float32)
    assert packed(near, "fixpipe", mode=1).bound.item() == 0


def test_scale_and_offset_broadcast():
    assert packed(torch.ones(1), "fixpipe", torch.zeros(5)).value.shape == (5,)
    assert packed(torch.ones(2, 1, 5), "fixpipe", torch.zeros(1)).value.shape == (2, 1, 5)


def test_a_view_is_read_as_it_is_meant():
    scale = some(24).view(2, 4, 3).transpose(1, 2)
    assert torch.equal(packed(scale).value, packed(scale.contiguous()).value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"form": "words"}, "no form words or round_mode 0"),
        ({"round_mode": 2}, "no form fixpipe or round_mode 2"),
        ({"scale": torch.ones(2, dtype=torch.float16)}, "must be finite float32, got torch.float16"),
        ({"scale": torch.tensor([torch.inf])}, "must be finite float32"),
        ({"form": "bits", "offset": torch.ones(1)}, "no room for an offset"),
        ({"form": "bits", "round_mode": 1}, "no need to round"),
        ({"offset": torch.ones(1).double()}, "offsets must be float32, got torch.float64"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    arguments = {"scale": torch.ones(2), "offset": None, "form": "fixpipe", "round_mode": 0} | changed
    with pytest.raises(ValueError, match=message):
        scale_pack(ScalePackInputs(**arguments))
