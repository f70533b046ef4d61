from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.judge.compare import error_ratio
from npudiff.reference.bounds import FLOAT32_ROUNDOFF, unit_roundoff
from npudiff.reference.rope_cache import RopeCacheInputs, entry_rounding, rope_cache
from npudiff.reference.rope_scaling import KINDS, RopeConfig, amplitude, frequencies

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(config, rows, dtype=torch.float32, **others):
    rows = torch.as_tensor(rows)
    given = {"offsets": None, "other": None, "lengths": (int(rows.max()) + 1,), "first_row": 0, **others}
    return RopeCacheInputs(rows, config=config, dtype=dtype, **given)


def test_a_table_worked_by_hand():
    result = rope_cache(inputs(RopeConfig("base", 4, 4), [0, 3]))
    right = [[1, 1, 0, 0], [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]]
    assert torch.allclose(result["table"].value, torch.tensor(right, dtype=torch.float64), atol=1e-15, rtol=0)
    assert result["cos"].value[1, 0, 0].tolist() == pytest.approx([math.cos(3), math.cos(0.03)] * 2)
    assert result["sin"].value[1, 0, 0].tolist() == pytest.approx([math.sin(3), math.sin(0.03)] * 2)
    assert result["softmax_scale"].value.tolist() == [0.5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_have_the_shapes_and_dtypes_of_the_buffers_that_backends_hold(dtype):
    result = rope_cache(inputs(RopeConfig("proportional", 4, 8), [1, 2, 5], dtype))
    assert {name: tuple(part.value.shape) for name, part in result.items()} == {
        "cos": (3, 1, 1, 8), "sin": (3, 1, 1, 8), "table": (3, 8), "softmax_scale": (1,)
    }  # fmt: skip
    assert [part.dtype for part in result.values()] == [dtype, dtype, dtype, torch.float32]
    halves = result["cos"], result["sin"]
    assert torch.equal(torch.cat([part.value[:, 0, 0, :4] for part in halves], 1), result["table"].value)
    assert torch.equal(torch.cat([part.bound[:, 0, 0, 4:] for part in halves], 1), result["table"].bound)


def test_linear_scaling_divides_positions():
    scaled = rope_cache(inputs(RopeConfig("linear", factors=(4.0,)), [8, 12]))["table"]
    plain = rope_cache(inputs(RopeConfig(), [2, 3]))["table"]
    assert torch.allclose(scaled.value, plain.value, atol=1e-15, rtol=0)


def test_several_factors_have_sections_that_count_from_zero():
    config = RopeConfig("linear", max_positions=10, factors=(1.0, 4.0, 2.5))
    rows, factors = [9, 10, 49, 50, 74], [1, 4, 4, 2.5, 2.5]
    found = rope_cache(inputs(config, rows))["table"].value
    for row, position, factor in zip(found, [9, 0, 39, 0, 24], factors, strict=True):
        assert float(row[0]) == pytest.approx(math.cos(position / factor))
        assert float(row[33]) == pytest.approx(math.sin(position / factor * 10_000 ** (-1 / 32)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_are_added(dtype):
    config = RopeConfig("llama3", factors=(8.0,))
    given = inputs(config, [1, 5, 0], offsets=torch.tensor([7, 0, 2], dtype=dtype), lengths=(9,))
    assert torch.equal(rope_cache(given)["cos"].value, rope_cache(inputs(config, [8, 5, 2]))["cos"].value)


def test_growth_and_other_ropes_change_nothing():
    given = inputs(RopeConfig("yarn", factors=(8.0,)), [3, 99])
    grown = replace(given, lengths=(2, 50, 100), first_row=3, other=RopeConfig())
    for name, part in rope_cache(given).items():
        assert torch.equal(part.value, rope_cache(grown)[name].value)
        assert torch.equal(part.bound, rope_cache(grown)[name].bound)


def devices(given):
    """Four correct devices: float32 throughout, frequencies or angles or everything in double precision."""
    config, factor = given.config, amplitude(given.config)
    exact = frequencies(config).value
    wide = torch.tensor(config.base) ** (torch.arange(0, config.rotary_dim, 2) / config.rotary_dim)
    scale = config.factor if config.kind == "linear" else 1.0
    position = given.rows.float() / scale
    half_exact = (given.rows.double() / scale)[:, None] * exact
    angles = {"rounded frequency": position[:, None] * exact.float(), "rounded angle": half_exact.float(),
              "double": half_exact}  # fmt: skip
    if config.kind in ("base", "linear"):
        angles["float32"] = position[:, None] * (1 / wide)
    return {
        name: torch.cat([(angle.cos() * factor), (angle.sin() * factor)], 1).to(given.dtype)
        for name, angle in angles.items()
    }


def ratios(given):
    expected = rope_cache(given)["table"]
    return {name: error_ratio(table, expected.value, expected.bound) for name, table in devices(given).items()}


PLACES = [range(300), range(4000, 4300), range(65_400, 65_700), range(2**20 - 300, 2**20)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_devices_stay_within_the_bound(kind, dtype):
    for dim, base in ((64, 1e4), (80, 5e6), (96, 5e5)):
        config = RopeConfig(kind, dim, dim, base, factors=(2.5,))
        for place in PLACES:
            for name, ratio in ratios(inputs(config, list(place), dtype)).items():
                assert float(ratio.max()) <= 1, (name, dim, place)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("kind", ["base", "linear"])
def test_float32_angles_come_close_to_the_bound(place, kind):
    """At 80 dims, whose exponents are rounded: 0.40 to 0.49. A bound that is 1.5 times too wide leaves them below."""
    ratio = ratios(inputs(RopeConfig(kind, 80, 80, factors=(2.5,)), list(place)))["float32"]
    assert float(ratio.max()) > 0.33


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", PLACES[:2], ids=str)
def test_the_cast_comes_close_to_the_bound(dtype, place):
    ratio = ratios(inputs(RopeConfig("yarn", factors=(8.0,)), list(place), dtype))
    assert max(float(part.max()) for part in ratio.values()) > 0.95


def test_the_bound_is_a_few_roundings_where_positions_are_small():
    for dtype in DTYPES:
        part = rope_cache(inputs(RopeConfig(), [0, 1, 2], dtype))["table"]
        assert float(part.bound.max()) < (unit_roundoff(dtype) if dtype != torch.float32 else 0) + 11 * FLOAT32_ROUNDOFF
    tiny = rope_cache(inputs(RopeConfig(base=5e6), [1]))["table"]  # sine of 3e-7: relative to its size
    assert float((tiny.bound / tiny.value.abs())[:, 63]) < 30 * FLOAT32_ROUNDOFF


def test_the_bound_at_a_million_positions_says_something_of_every_pair():
    """0.3 radians where a pair turns fast, and a rounding where the angle is exact."""
    for dim, base in ((64, 1e4), (80, 5e6), (192, 5e5)):
        bound = rope_cache(inputs(RopeConfig("base", dim, dim, base), list(PLACES[3])))["table"].bound
        pairs = torch.maximum(*bound.amax(0).chunk(2))
        assert float(pairs[0]) < 4e-7
        assert float(pairs[1]) < 0.42
        assert float((pairs / frequencies(RopeConfig("base", dim, dim, base)).value)[1:].max()) < 1.6


@pytest.mark.parametrize("place", [1, 4096, 65_536, 2**19])
def test_one_position_too_many_is_above_the_bound_at_every_pair(place):
    for dim, base in ((64, 1e4), (80, 5e6), (192, 5e5)):
        config, rows = RopeConfig("base", dim, dim, base), list(range(place, place + 200))
        expected = rope_cache(inputs(config, rows))["table"]
        wrong = devices(inputs(config, [row + 1 for row in rows]))["float32"]
        ratio = (wrong.double() - expected.value).abs() / expected.bound
        assert float(torch.maximum(*ratio.amax(0).chunk(2)).min()) > 1, (dim, base)


def test_frequencies_of_sixteen_bits_are_above_the_bound():
    config = RopeConfig("base", 64, 64)
    for dtype in (torch.bfloat16, torch.float16):
        rows = torch.arange(600, 700)
        angle = rows.float()[:, None] * frequencies(config).value.to(dtype).float()
        expected = rope_cache(inputs(config, rows, torch.bfloat16))["table"]
        actual = torch.cat([angle.cos(), angle.sin()], 1).to(torch.bfloat16)
        assert float(((actual.double() - expected.value).abs() / expected.bound).max()) > 10


def test_a_wrong_frequency_is_above_the_bound():
    """Off by 32 roundings of float32, at any position."""
    config = RopeConfig("base", 64, 64)
    for place in PLACES[1:]:
        given = inputs(config, list(place))
        expected = rope_cache(given)["table"]
        angle = given.rows.double()[:, None] * frequencies(config).value * (1 + 32 * FLOAT32_ROUNDOFF)
        ratio = (torch.cat([angle.cos(), angle.sin()], 1) - expected.value).abs() / expected.bound
        assert float(ratio.max()) > 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 1.37])
def test_an_entry_of_a_known_angle_is_off_by_its_own_roundings(dtype, factor):
    angle = torch.linspace(0, 1000, 50_001).double().float()
    actual = (angle.cos() * factor).to(dtype).double()
    exact = angle.double().cos()
    ratio = error_ratio(actual, exact * factor, entry_rounding(exact, angle.double(), factor, dtype))
    assert (0.15 if dtype == torch.float32 else 0.95) < float(ratio.max()) <= 1


def test_the_softmax_scale_may_be_computed_in_float32():
    worst = 0.0
    for factor in torch.linspace(1, 60, 200).tolist():
        config = RopeConfig("deepseek_yarn", 64, 192, factors=(factor,), mscale=0.9, mscale_all_dim=0.7)
        expected = rope_cache(inputs(config, [0]))["softmax_scale"]
        log = torch.tensor(factor).log() * torch.tensor(0.7) * torch.tensor(0.1) + 1
        actual = log * log * torch.tensor(192.0).rsqrt()
        worst = max(worst, float((actual.double() - expected.value).abs() / expected.bound))
    assert 0.1 < worst <= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": torch.float64}, "dtype is float32, bfloat16 or float16"),
        ({"lengths": ()}, "lengths must rise"),
        ({"lengths": (8, 4)}, "lengths must rise"),
        ({"lengths": (4, 4)}, "lengths must rise"),
        ({"lengths": (2**24 + 1,)}, "lengths must rise"),
        ({"lengths": (3,)}, r"positions plus offsets must lie in 0\.\.2"),
        ({"first_row": 2}, r"positions plus offsets must lie in 2\.\.3"),
        ({"first_row": 4}, r"first_row must lie in 0\.\.3, got 4"),
        ({"offsets": torch.tensor([0])}, "2 positions, but offsets"),
        ({"offsets": torch.tensor([0, 1])}, r"positions plus offsets must lie in 0\.\.3"),
        ({"config": RopeConfig("ntk")}, "kind is one of"),
        ({"config": RopeConfig("linear", max_positions=2, factors=(1.0, 2.0))}, r"sections \(2, 4\) has 6 rows"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        rope_cache(replace(inputs(RopeConfig(), [1, 3]), **changed))
