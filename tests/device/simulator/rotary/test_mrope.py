"""``npu_mrope``: rows by position, sections, both cache modes, and what it refuses."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import (
    PROFILES,
    DeviceFault,
    NotSimulated,
    OperatorRejected,
    UndefinedBehaviour,
    use_profile,
)


def mrope(positions, query, key, cache, head_size, **more):
    return torch.ops.npu.npu_mrope(positions, query, key, cache, head_size, **more)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(positions, packed, cache, head_size, section, mode, cache_mode):
    """Token by token and pair by pair, in float64; positions is a list per section."""
    packed, cache = packed.double(), cache.double()
    half = cache.shape[1] // 2
    output = packed.clone()
    for token in range(len(packed)):
        for column in range(half):
            axis = 0
            if section and cache_mode == "default":
                axis = next(a for a in range(len(section)) if column < sum(section[: a + 1]))
            elif section:
                axis = column % 3 if column < 3 * section[1] else 0
            row = cache[positions[axis][token]]
            cos, sin = row[column], row[half + column]
            for start in range(0, packed.shape[1], head_size):
                first, second = (column, column + half) if mode == "half" else (2 * column, 2 * column + 1)
                a, b = packed[token, start + first].clone(), packed[token, start + second].clone()
                output[token, start + first] = a * cos - b * sin
                output[token, start + second] = b * cos + a * sin
    return output


SECTIONS = [
    (None, 64, 64, "default"),
    ([0, 0, 0], 64, 32, "default"),
    ([16, 24, 24], 128, 128, "default"),
    ([24, 20, 20], 160, 128, "default"),
    ([8, 12, 12], 64, 64, "default"),
    ([16, 16, 16, 16], 128, 128, "default"),
    ([16, 24, 24], 128, 128, "interleave"),
    ([24, 20, 20], 128, 128, "interleave"),
    ([8, 12, 12], 96, 64, "interleave"),
]


@pytest.mark.few(18)
@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("section", "head_size", "rotary_dim", "cache_mode"), SECTIONS)
def test_against_float64(mode, dtype, section, head_size, rotary_dim, cache_mode):
    axes = len(section) if section and any(section) else 1
    positions = torch.randint(0, 9, (axes, 3), generator=torch.Generator().manual_seed(1))
    query, key = draw(3, 2 * head_size, dtype=dtype), draw(3, head_size, dtype=dtype, seed=1)
    cache = draw(9, rotary_dim, dtype=dtype, seed=2)
    given = positions if axes > 1 else positions[0]
    more = {"mrope_section": section, "rotary_mode": mode, "cache_mode": cache_mode}
    outputs = mrope(given, query, key, cache, head_size, **more)
    used = section if axes > 1 else None
    for output, packed in zip(outputs, (query, key), strict=True):
        expected = exact(positions.tolist(), packed, cache, head_size, used, mode, cache_mode)
        assert output.dtype == dtype
        assert output.shape == packed.shape
        bound = torch.finfo(dtype).eps / 2 * expected.abs() + 3e-6
        assert ((output - expected).abs() <= bound).all()
        # What is not turned passes bit by bit.
        heads, before = output.view(3, -1, head_size), packed.view(3, -1, head_size)
        assert torch.equal(heads[..., rotary_dim:], before[..., rotary_dim:])


def sources(section, cache_mode, columns):
    """Say from which row of positions each column comes: row p of the cache is full of p."""
    cache = torch.zeros(5, 2 * columns)
    cache[:, :columns] = torch.arange(5.0).unsqueeze(1)
    positions = torch.tensor([[1], [2], [3], [4]])[: len(section)]
    query = torch.ones(1, 2 * columns)
    output, _ = mrope(positions, query, query, cache, 2 * columns, mrope_section=section, cache_mode=cache_mode)
    return (output[0, :columns] - 1).int().tolist()


def test_sections_by_hand():
    assert sources([8, 12, 12], "default", 32) == [0] * 8 + [1] * 12 + [2] * 12
    assert sources([16, 16, 16, 16], "default", 64) == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16
    # 36 columns alternate where there are 32; 60 alternate where there are 64.
    assert sources([8, 12, 12], "interleave", 32) == ([0, 1, 2] * 12)[:32]
    assert sources([24, 20, 20], "interleave", 64) == [0, 1, 2] * 20 + [0] * 4


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_it_rounds_once_and_to_even(dtype, step, mode):
    query, cache = torch.zeros(1, 32, dtype=dtype), torch.zeros(1, 32, dtype=dtype)
    partner = 16 if mode == "half" else 1
    query[0, 0], query[0, partner], cache[0, 0], cache[0, 16] = 1 + step, 1 + 2 * step, 1 + step, 1
    zero = torch.zeros(1, dtype=torch.int64)
    assert mrope(zero, query, query, cache, 32, rotary_mode=mode)[0][0, 0].item() == step**2
    query[0, 0], query[0, partner], cache[0, 0] = 1, -step / 2, 1
    assert mrope(zero, query, query, cache, 32, rotary_mode=mode)[0][0, 0].item() == 1


def test_inputs_stay_and_outputs_are_new():
    query, key, cache = draw(2, 32), draw(2, 32, seed=1), draw(4, 32, seed=2)
    before = query.clone(), key.clone()
    outputs = mrope(torch.tensor([1, 3]), query, key, cache, 32)
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])
    assert {o.data_ptr() for o in outputs}.isdisjoint({query.data_ptr(), key.data_ptr()})


def good(**other):
    arguments = {
        "positions": torch.tensor([0, 1]),
        "query": draw(2, 64),
        "key": draw(2, 32),
        "cos_sin_cache": draw(4, 32),
        "head_size": 32,
    }
    return arguments | other


def test_modes_may_be_none():
    expected = torch.ops.npu.npu_mrope(**good())
    outputs = torch.ops.npu.npu_mrope(**good(rotary_mode=None, cache_mode=None))
    assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rotary_mode": "interleaved"}, r"rotary_mode was 'interleaved'; allowed: 'half' or 'interleave' \[ERR"),
        ({"rotary_mode": "interleaved"}, "rotary_mode only support half or interleave"),
        ({"cache_mode": "interleaved"}, "cache_mode only support default or interleave"),
        ({"cache_mode": "interleaved"}, r"cache_mode was 'interleaved'; allowed: 'default' or 'interleave' \[ERR"),
        ({"positions": torch.tensor([0.0, 1])}, "positions was float32; allowed: int64 or int32"),
        ({"positions": torch.zeros(2, 2).long()}, r"positions was of shape \[2, 2\]; allowed: \[T\], \[3, T\]"),
        ({"positions": torch.zeros(1, 3, 2).long()}, r"positions was of shape \[1, 3, 2\]"),
        ({"positions": torch.tensor([0])}, "query was of 2 tokens; allowed: 1 tokens, as positions"),
        ({"key": draw(3, 32)}, "key was of 3 tokens; allowed: 2 tokens"),
        ({"query": draw(2, 2, 32)}, r"query was of rank 3, \[2, 2, 32\]; allowed: rank 2"),
        ({"key": draw(2, 32).half()}, "key was float16; allowed: float32, as query"),
        ({"cos_sin_cache": draw(4, 32).bfloat16()}, "cos_sin_cache was bfloat16; allowed: float32, as query"),
        ({"query": draw(2, 64).double()}, "query was float64; allowed: float16 or bfloat16 or float32"),
        ({"head_size": 24}, "head_size was 24; allowed: a multiple of 16"),
        ({"head_size": 0}, "head_size was 0"),
        ({"query": draw(2, 48)}, "query was of width 48; allowed: a multiple of head_size 32"),
        ({"key": draw(2, 40)}, "key was of width 40"),
        ({"cos_sin_cache": draw(4, 64)}, "cos_sin_cache was of rotary dim 64; allowed: .* up to head_size 32"),
        ({"cos_sin_cache": draw(4, 24)}, "cos_sin_cache was of rotary dim 24; allowed: a multiple of 16"),
        ({"mrope_section": [4, 6, 6]}, r"mrope_section was \[4, 6, 6\]; allowed: \[8, 12, 12\], \[16, 16, 16, 16\]"),
        ({"mrope_section": [8, 12, 12]}, r"mrope_section was \[8, 12, 12\]; allowed: sections with the sum 16"),
    ],
)
def test_rejections(other, message):
    with pytest.raises(OperatorRejected, match=message):
        torch.ops.npu.npu_mrope(**good(**other))


def test_16_bit_needs_multiples_of_32():
    half = {name: good()[name].half() for name in ("query", "key", "cos_sin_cache")}
    torch.ops.npu.npu_mrope(**good(**half))
    with pytest.raises(OperatorRejected, match="head_size was 16; allowed: a multiple of 32"):
        torch.ops.npu.npu_mrope(**good(**half, head_size=16))
    half["cos_sin_cache"] = half["cos_sin_cache"][:, :16]
    with pytest.raises(OperatorRejected, match="rotary dim 16; allowed: a multiple of 32"):
        torch.ops.npu.npu_mrope(**good(**half))


@pytest.mark.parametrize("positions", [torch.zeros(2).long(), torch.zeros(3, 2).long()])
def test_a_row_of_positions_per_section(positions):
    wide = {"query": draw(2, 128), "key": draw(2, 128), "cos_sin_cache": draw(4, 128), "head_size": 128}
    call = good(**wide, positions=positions, mrope_section=[16, 16, 16, 16])
    with pytest.raises(OperatorRejected, match=r"positions was of shape .*; allowed: \[4, T\], a row per section"):
        torch.ops.npu.npu_mrope(**call)


@pytest.mark.parametrize(("bad", "where"), [([0, 4], "[1] is 4"), ([-1, 0], "[0] is -1")])
def test_positions_outside_the_cache(bad, where):
    with pytest.raises(DeviceFault) as caught:
        torch.ops.npu.npu_mrope(**good(positions=torch.tensor(bad)))
    assert f"positions{where}, there are 4 rows of cos_sin_cache" in str(caught.value)


def test_rows_of_positions_without_sections_are_undefined():
    with pytest.raises(UndefinedBehaviour, match="without mrope_section"):
        torch.ops.npu.npu_mrope(**good(positions=torch.zeros(3, 2).long()))


def test_four_interleaved_sections_are_not_simulated():
    wide = {"query": draw(2, 128), "key": draw(2, 128), "cos_sin_cache": draw(4, 128), "head_size": 128}
    call = good(**wide, positions=torch.zeros(4, 2).long(), mrope_section=[16] * 4, cache_mode="interleave")
    with pytest.raises(NotSimulated, match="mrope_section was"):
        torch.ops.npu.npu_mrope(**call)


def test_choices():
    narrow = good(positions=torch.tensor([0, 1], dtype=torch.int32))
    straight = torch.ops.npu.npu_mrope(**good())
    assert all(torch.equal(a, b) for a, b in zip(torch.ops.npu.npu_mrope(**narrow), straight, strict=True))
    with changed(mrope_int32_positions="rejected"):
        torch.ops.npu.npu_mrope(**good())
        with pytest.raises(OperatorRejected, match="positions was int32; allowed: int64"):
            torch.ops.npu.npu_mrope(**narrow)
    free = good(positions=torch.zeros(3, 2).long(), mrope_section=[4, 6, 6])
    with changed(mrope_sections=frozenset({(4, 6, 6)})):
        torch.ops.npu.npu_mrope(**free)
