from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.judge.compare import error_ratio
from npudiff.reference import rope_scaling
from npudiff.reference.bounds import FLOAT32_ROUNDOFF
from npudiff.reference.rope_scaling import (
    KINDS,
    Frequencies,
    RopeConfig,
    _corners,
    _llama3_share,
    _yarn_share,
    amplitude,
    check_config,
    frequencies,
    get_mscale,
    softmax_scale,
)

DEEPSEEK_V3 = RopeConfig("deepseek_yarn", 64, 192, factors=(40.0,), mscale=1.0, mscale_all_dim=1.0)
GPT_OSS = RopeConfig("yarn", 64, 64, 150_000.0, factors=(32.0,), truncate=False)
LLAMA_31 = RopeConfig("llama3", 128, 128, 500_000.0, 8192, (8.0,))


def plain(config):
    return [config.base ** (-2 * i / config.rotary_dim) for i in range(config.rotary_dim // 2)]


def test_numbers_worked_by_hand():
    assert frequencies(RopeConfig("base", 4, 4)).value.tolist() == pytest.approx([1.0, 0.01])
    assert frequencies(RopeConfig("linear", 4, 4, factors=(4.0,))).value.tolist() == pytest.approx([1.0, 0.01])
    stretched = RopeConfig("dynamic", 4, 4, 10.0, factors=(2.0,))  # 10 * (4 - 1) ** (4 / 2) = 90
    assert frequencies(stretched).value.tolist() == pytest.approx([1.0, 90**-0.5])
    assert frequencies(RopeConfig("proportional", 4, 8, 16.0)).value.tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(("beyond", "open_there"), [(0.5, True), (2.0, False)])
def test_a_ramp_is_open_as_far_as_float32_may_be_off_at_its_ends(monkeypatch, beyond, open_there):
    """Pairs 3 and 7 lie beyond the ends of a ramp of four pairs, by so many of its errors."""
    first, last = beyond * 0.75 * 2.0**-24, beyond * (0.75 + 3) * 2.0**-24
    monkeypatch.setattr(rope_scaling, "_corners", lambda config: (3 + 4 * first, 3 + 4 / (1 + last)))
    _, error = _yarn_share(RopeConfig("yarn", 32, 32, factors=(4.0,)))
    assert [float(error[pair]) > 0 for pair in (2, 3, 5, 7, 8)] == [False, open_there, True, open_there, False]


@pytest.mark.parametrize(("beyond", "open_there"), [(0.5, True), (2.0, False)])
def test_the_ramp_of_llama_too(beyond, open_there):
    """From one turn to four: an error is three roundings of a third of the turns, and three of the ramp."""
    turns = torch.tensor([1 - 3 * beyond * 2.0**-24, 2.0, 4 + 3 * beyond * (4 + 3) * 2.0**-24]).double()
    plain = Frequencies(turns * 2 * math.pi / LLAMA_31.max_positions, torch.zeros(3).double())
    _, error = _llama3_share(plain, LLAMA_31)
    assert [float(one) > 0 for one in error] == [open_there, True, open_there]


def test_deepseek_v3_has_the_published_softmax_scale():
    assert get_mscale(40, 1.0) == pytest.approx(1.36888, abs=1e-5)
    assert amplitude(DEEPSEEK_V3) == 1.0
    assert softmax_scale(DEEPSEEK_V3) == pytest.approx(0.135234, abs=5e-7)
    assert softmax_scale(replace(DEEPSEEK_V3, mscale_all_dim=0.0)) == pytest.approx(192**-0.5)
    assert softmax_scale(replace(DEEPSEEK_V3, kind="yarn")) == pytest.approx(192**-0.5)


def test_the_amplitude_is_that_of_the_configuration():
    assert amplitude(GPT_OSS) == pytest.approx(1.34657, abs=1e-5)  # 1 + ln(32) / 10
    assert amplitude(replace(GPT_OSS, attention_factor=0.5)) == pytest.approx(1.34657 / 2, abs=1e-5)
    assert amplitude(replace(GPT_OSS, mscale=1.0, mscale_all_dim=0.5)) == pytest.approx(1.34657 / 1.17329, abs=1e-5)
    assert amplitude(replace(GPT_OSS, factors=(1.0,))) == 1.0
    assert amplitude(replace(DEEPSEEK_V3, mscale_all_dim=0.0)) == get_mscale(40, 1.0)
    for kind in ("base", "linear", "dynamic", "llama3", "proportional"):
        assert amplitude(RopeConfig(kind, factors=(8.0,), attention_factor=2.0, mscale=1.0, mscale_all_dim=0.5)) == 1.0


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_mixes_along_a_ramp():
    """64 dims, base 10000, 4096 positions: 32 turns are made by pair 10.47, one by pair 22.5."""
    config = replace(DEEPSEEK_V3, kind="yarn")
    found, right = frequencies(config).value.tolist(), plain(config)
    for i in range(11):
        assert found[i] == pytest.approx(right[i], rel=1e-14)
    for i in range(23, 32):
        assert found[i] == pytest.approx(right[i] / 40, rel=1e-14)
    for i in range(11, 23):
        kept = 1 - (i - 10) / 13
        assert found[i] == pytest.approx(right[i] * kept + right[i] / 40 * (1 - kept), rel=1e-14)


def test_yarn_without_truncation_has_its_corners_between_pairs():
    """150000 for the base: 8.0928 and 17.3980."""
    found, right = frequencies(GPT_OSS).value.tolist(), plain(GPT_OSS)
    low, high = (32 * math.log(4096 / (turns * 2 * math.pi)) / math.log(150_000) for turns in (32, 1))
    assert (low, high) == (pytest.approx(8.0928, abs=1e-4), pytest.approx(17.3980, abs=1e-4))
    for i in range(32):
        kept = 1 - min(1, max(0, (i - low) / (high - low)))
        assert found[i] == pytest.approx(right[i] * kept + right[i] / 32 * (1 - kept), rel=1e-13)


def test_yarn_with_one_beta_has_a_step_and_deepseek_always_truncates():
    step = RopeConfig("yarn", 64, 64, factors=(4.0,), beta_fast=2.0, beta_slow=2.0, truncate=False)
    corner = 32 * math.log(4096 / (4 * math.pi)) / math.log(10_000)
    found, right = frequencies(step).value.tolist(), plain(step)
    for i in range(32):
        assert found[i] == pytest.approx(right[i] if i < corner else right[i] / 4, rel=1e-14)
    deepseek = replace(DEEPSEEK_V3, truncate=False)
    assert torch.equal(frequencies(deepseek).value, frequencies(DEEPSEEK_V3).value)


def test_a_ramp_ends_at_the_last_dim():
    """1000 turns are made by pair 42.2 of base 10, one by 138: beyond the last dim, 63."""
    config = RopeConfig("yarn", 64, 64, 10.0, 131_072, (8.0,), beta_fast=1000.0)
    found, right = frequencies(config).value.tolist(), plain(config)
    assert found == pytest.approx(right, rel=1e-14)
    wide = replace(config, max_positions=8192, beta_fast=4096.0)
    assert frequencies(wide).value[31] == pytest.approx(right[31] * (1 - 31 / 63 * 7 / 8), rel=1e-14)


def test_less_extrapolation_divides_the_fast_pairs_too():
    config = replace(DEEPSEEK_V3, kind="yarn", extrapolation_factor=0.75)
    found, right = frequencies(config).value.tolist(), plain(config)
    assert found[0] == pytest.approx(0.75 + 0.25 / 40)
    assert found[31] == pytest.approx(right[31] / 40)


def test_llama3_keeps_short_wavelengths_divides_long_ones_and_mixes_between():
    found, right = frequencies(LLAMA_31).value.tolist(), plain(LLAMA_31)
    regions = set()
    for value, frequency in zip(found, right, strict=True):
        turns = 8192 * frequency / (2 * math.pi)
        kept = 1.0 if turns > 4 else 0.0 if turns < 1 else (turns - 1) / 3
        assert value == pytest.approx(frequency / 8 * (1 - kept) + frequency * kept, rel=1e-13)
        regions.add("kept" if kept == 1 else "mixed" if kept else "divided")
    assert regions == {"kept", "mixed", "divided"}


def float32(config):
    """Frequencies of a float32 device, one operator at a time, in an order of their own."""
    dim = config.head_dim if config.kind == "proportional" else config.rotary_dim
    base = config.base
    if config.kind == "dynamic":
        factor = config.factor
        base *= (factor * factor - factor + 1) ** (dim / (dim - 2))
    wide = torch.tensor(base, dtype=torch.float32) ** (torch.arange(0, dim, 2) / dim)
    if config.kind in ("base", "dynamic", "linear"):
        return 1 / wide
    if config.kind == "proportional":
        return torch.where(torch.arange(dim // 2) < config.rotary_dim // 2, 1 / wide, 0)
    if config.kind == "llama3":
        low, high = config.low_freq_factor, config.high_freq_factor
        keep = ((config.max_positions / (2 * math.pi / (1 / wide)) - low) / (high - low)).clamp(0, 1)
    else:
        corners = [dim * math.log(config.max_positions / (turns * 2 * math.pi)) / (2 * math.log(config.base))
                   for turns in (config.beta_fast, config.beta_slow)]  # fmt: skip
        if config.truncate:
            corners = [math.floor(corners[0]), math.ceil(corners[1])]
        low, high = max(corners[0], 0), min(corners[1], dim - 1)
        high += 0.001 * (low == high)
        keep = (1 - ((torch.arange(dim // 2) - low) / (high - low)).clamp(0, 1)) * config.extrapolation_factor
    return 1 / (config.factor * wide) * (1 - keep) + 1 / wide * keep


CONFIGS = [
    RopeConfig(kind, dim, 2 * dim, base, positions, (factor,), 1.0, 4.0, fast, slow, truncate, extrapolation)
    for kind in KINDS
    for dim, base, positions, factor in (
        (64, 1e4, 4096, 40.0), (96, 5e5, 8192, 2.5), (80, 5e6, 100, 1.5), (192, 1.5e5, 131_072, 32.0),
    )
    for fast, slow, truncate, extrapolation in ((32.0, 1.0, True, 1.0), (16.0, 0.5, False, 1.0), (4.0, 2.0, True, 0.75))
    if kind in ("yarn", "deepseek_yarn") or (fast, slow) == (32.0, 1.0)
    if kind != "deepseek_yarn" or truncate
]  # fmt: skip


def ratio(config):
    expected = frequencies(config)
    error = (float32(config).double() - expected.value).abs()
    return error / (expected.relative * expected.value).clamp(min=1e-300)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{c.rotary_dim}-{c.beta_fast:g}")
def test_float32_frequencies_are_within_their_error(config):
    assert float(ratio(config).max()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_frequency_is_sharp(kind):
    """This device comes to 0.42 to 0.52 of it; an error that is 1.3 times too wide would leave it below."""
    assert max(float(ratio(config).max()) for config in CONFIGS if config.kind == kind) > 0.4


@pytest.mark.parametrize("kind", ["llama3", "yarn", "deepseek_yarn"])
def test_the_error_of_a_mixed_frequency_is_sharp(kind):
    """The same of the pairs on a ramp, whose error is several times that of a power."""
    worst = 0.0
    for config in CONFIGS:
        if config.kind == kind:
            mixed = frequencies(config).relative > 1.3 * frequencies(replace(config, kind="base")).relative
            worst = max(worst, *ratio(config)[mixed].tolist())
    assert worst > 0.28


@pytest.mark.parametrize("truncate", [True, False])
def test_the_error_of_a_ramp_is_sharp(truncate):
    """Shares of float32 come to 0.5 of their error at least, whether the corners are integers or not."""
    worst = 0.0
    for base in (1e4, 1.5e5, 5e5, 5e6):
        config = RopeConfig("yarn", 192, 192, base, factors=(8.0,), truncate=truncate)
        low, high = _corners(config)
        ramp = ((torch.arange(96, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        share, error = _yarn_share(config)
        worst = max(worst, float(error_ratio(1 - ramp, share, error).max()))
    assert 0.5 < worst <= 1


def test_the_first_pair_turns_by_exactly_one_radian():
    for config in CONFIGS:
        if config.extrapolation_factor == 1 and (config.kind != "llama3" or config.max_positions > 1000):
            found = frequencies(config)
            assert (float(found.value[0]), float(found.relative[0])) == (1, 0), config
            assert bool((found.relative[1 : config.rotary_dim // 2] > 5 * FLOAT32_ROUNDOFF).all())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "longrope"}, "kind is one of base, linear, .*, got longrope"),
        ({"rotary_dim": 63}, "rotary_dim must be even, in 4..head_dim, got 63 of 192"),
        ({"rotary_dim": 194}, "got 194 of 192"),
        ({"base": 1.0}, "base 1.0 or max_positions 4096 out of range"),
        ({"factors": ()}, "factors must lie in 1..4096"),
        ({"factors": (0.5,)}, "factors must lie in 1..4096"),
        ({"factors": (2.0, 4.0)}, "several factors are for linear scaling"),
        ({"kind": "linear", "factors": (1.5, 1.0001)}, "sections of whole rows"),
        ({"low_freq_factor": 4.0}, "low and high factor must rise, got 4.0, 4.0"),
        ({"beta_slow": 33.0}, "betas 32.0, 33.0 must fall"),
        ({"max_positions": 6}, "the slow one lie within max_positions"),
        ({"base": 2.0, "max_positions": 131_072}, "the ramp would begin at pair .* and end at 63: the base is too"),
        ({"extrapolation_factor": 1.5}, "extrapolation_factor must lie in"),
        ({"mscale": None}, r"mscale and mscale_all_dim go together, in 0..16, got \[1.0\]"),
        ({"kind": "yarn", "mscale_all_dim": 0.0}, "go together, in 1e-06..16"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        check_config(replace(DEEPSEEK_V3, **changed))
