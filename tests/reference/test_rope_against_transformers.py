"""Frequencies, amplitude and softmax scale against those of transformers, for every scaling that both have.

Both agree within the error that the reference states for float32 frequencies, which transformers computes. Where the
two mean different things by one name, a test says which.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import modeling_rope_utils as rope_utils
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.glm import modeling_glm as glm  # its plain rope may be partial, Llama's not
from transformers.models.llama import modeling_llama as llama

from npudiff.judge.compare import error_ratio
from npudiff.reference.rope_cache import RopeCacheInputs, rope_cache
from npudiff.reference.rope_scaling import RopeConfig, amplitude, frequencies, get_mscale, softmax_scale

DIMS = [(64, 1e4), (96, 5e5), (80, 5e6), (192, 1.5e5), (32, 1e6)]


def parameters(config):
    """The configuration in the words of transformers."""
    named = {"rope_type": config.kind, "rope_theta": config.base}
    if config.kind not in ("base", "proportional"):
        named["factor"] = config.factor
    if config.kind == "llama3":
        named |= {"low_freq_factor": config.low_freq_factor, "high_freq_factor": config.high_freq_factor}
    if config.kind in ("yarn", "deepseek_yarn"):
        named |= {"rope_type": "yarn", "beta_fast": config.beta_fast, "beta_slow": config.beta_slow}
        named |= {"truncate": config.truncate, "mscale": config.mscale, "mscale_all_dim": config.mscale_all_dim}
    if config.kind in ("llama3", "yarn", "deepseek_yarn"):
        named["original_max_position_embeddings"] = config.max_positions
    if config.kind == "base":
        named["rope_type"] = "default"
    if config.rotary_dim != config.head_dim:
        named["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    return named


def model(config, **changed):
    return transformers.LlamaConfig(
        hidden_size=config.head_dim,
        num_attention_heads=1,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rope_parameters=parameters(config) | changed,
    )


def theirs(config, length=None, **changed):
    """Frequencies (float32) and the factor of cosines and sines."""
    if config.kind == "base":
        return glm.GlmRotaryEmbedding.compute_default_rope_parameters(model(config, **changed))
    kind = "yarn" if config.kind == "deepseek_yarn" else config.kind
    return rope_utils.ROPE_INIT_FUNCTIONS[kind](model(config, **changed), seq_len=length)


def ratio(config, found, divided_by=1.0):
    expected = frequencies(config)
    value = expected.value / divided_by
    room = expected.relative + (0 if divided_by == 1 else 2.0**-23)  # the factor, and what it divides
    return float(error_ratio(found, value, value * room).max())


def configs(kind, **fields):
    return [RopeConfig(kind, dim, dim, base, **fields) for dim, base in DIMS]


@pytest.mark.parametrize("partial", [1, 2])
def test_plain_rope_agrees(partial):
    for config in configs("base"):
        found, factor = theirs(replace(config, head_dim=partial * config.rotary_dim))
        assert factor == amplitude(config) == 1.0
        assert ratio(config, found) <= 1


@pytest.mark.parametrize("factor", [1.0, 1.5, 8.0, 40.0])
def test_linear_scaling_agrees(factor):
    """They divide frequencies, backends divide positions: the angles are the same."""
    for config in configs("linear", factors=(factor,)):
        assert ratio(config, theirs(config)[0], factor) <= 1


@pytest.mark.parametrize("factor", [1.5, 2.0, 8.0])
def test_dynamic_scaling_agrees_at_the_length_of_the_table(factor):
    for config in configs("dynamic", factors=(factor,), max_positions=2048):
        assert ratio(config, theirs(config, int(2048 * factor))[0]) <= 1


def test_dynamic_scaling_of_transformers_follows_the_sequence_and_that_of_backends_does_not():
    """A model of transformers that sees a short prompt has other frequencies than the table of a backend."""
    (config, *_) = configs("dynamic", factors=(8.0,), max_positions=2048)
    assert ratio(config, theirs(config, 2048)[0]) > 1000
    assert ratio(replace(config, kind="base"), theirs(config, 2048)[0]) <= 1


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (1.0, 8.0), (2.0, 3.0), (0.5, 16.0)])
@pytest.mark.parametrize("positions", [100, 8192, 131_072])
def test_llama3_agrees(low, high, positions):
    fields = {"factors": (8.0,), "low_freq_factor": low, "high_freq_factor": high, "max_positions": positions}
    for config in configs("llama3", **fields):
        assert ratio(config, theirs(config)[0]) <= 1


@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (16.0, 1.0), (64.0, 2.0), (4.0, 0.5), (2.0, 2.0)])
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("factor", "positions"), [(40.0, 4096), (2.5, 100), (32.0, 131_072), (1.0, 8192)])
def test_yarn_agrees(fast, slow, truncate, factor, positions):
    fields = {"factors": (factor,), "beta_fast": fast, "beta_slow": slow, "max_positions": positions}
    for config in configs("yarn", truncate=truncate, **fields):
        found, scale = theirs(config)
        assert ratio(config, found) <= 1
        assert scale == pytest.approx(amplitude(config), rel=1e-14)


@pytest.mark.parametrize(("one", "two"), [(1.0, 1.0), (0.707, 0.707), (1.0, 0.707), (0.707, 1.0)])
@pytest.mark.parametrize("kind", ["yarn", "deepseek_yarn"])
def test_the_amplitude_from_two_coefficients_agrees(kind, one, two):
    for config in configs(kind, factors=(40.0,), mscale=one, mscale_all_dim=two):
        found, scale = theirs(config)
        assert ratio(config, found) <= 1
        assert scale == pytest.approx(amplitude(config), rel=1e-14)


def test_an_attention_factor_replaces_the_amplitude_in_transformers_and_multiplies_it_in_backends():
    (config, *_) = configs("yarn", factors=(40.0,), attention_factor=0.8)
    assert theirs(config, attention_factor=0.8)[1] == 0.8
    assert amplitude(config) == pytest.approx(0.8 * get_mscale(40.0, 1.0))


@pytest.mark.parametrize("head_dim", [64, 96, 256])
def test_proportional_rope_agrees(head_dim):
    for dim, base in ((32, 1e4), (16, 1e6), (64, 5e5)):
        config = RopeConfig("proportional", dim, head_dim, base)
        found, _ = theirs(config)
        assert len(found) == head_dim // 2
        assert ratio(config, found) <= 1


def test_deepseek_v3_has_their_softmax_scale():
    for factor, coefficient, head_dim in ((40.0, 1.0, 192), (8.0, 0.707, 192), (1.0, 1.0, 128), (40.0, 0.0, 192)):
        config = RopeConfig("deepseek_yarn", 64, head_dim, factors=(factor,), mscale=1.0, mscale_all_dim=coefficient)
        right = deepseek.yarn_apply_mscale(parameters(config), head_dim**-0.5)
        assert softmax_scale(config) == pytest.approx(right, rel=1e-14)


@pytest.mark.parametrize("kind", ["base", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("place", [0, 4000, 100_000, 2**20 - 256])
def test_cosines_and_sines_of_a_model_are_within_the_bound(kind, place):
    """The rotary embedding of a Llama as a whole: float32 angles, amplitude, cast."""
    for dim, base in DIMS:
        config = RopeConfig(kind, dim, dim, base, factors=(8.0,))
        rows = torch.arange(place, place + 256)
        for dtype in (torch.float32, torch.bfloat16):
            expected = rope_cache(RopeCacheInputs(rows, None, config, None, (2**20,), 0, dtype))
            right = llama.LlamaRotaryEmbedding(model(config))(torch.zeros(1, dtype=dtype), rows.unsqueeze(0))
            for name, found in zip(("cos", "sin"), right, strict=True):
                part = expected[name]
                assert found.dtype == part.dtype
                assert float(error_ratio(found[0][:, None, None, :], part.value, part.bound).max()) <= 1
