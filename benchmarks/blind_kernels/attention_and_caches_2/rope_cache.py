"""Wrong kernels of rope_cache; TWIN=1 runs the same code without the mistakes."""

import math
import os
from dataclasses import replace

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "rope_cache"


def _mscale(factor, coefficient):
    return 1.0 if factor <= 1 else 1.0 + 0.1 * coefficient * math.log(factor)


def _powers(base, dim, pairs):
    return base ** (-2 * torch.arange(pairs, dtype=torch.float64) / dim)


def _frequencies(config, *, truncate=None):
    dim, pairs = config.rotary_dim, config.rotary_dim // 2
    if config.kind == "dynamic":
        growth = config.factor**2 - (config.factor - 1)
        return _powers(config.base * growth ** (dim / (dim - 2)), dim, pairs)
    if config.kind == "proportional":
        turning = _powers(config.base, config.head_dim, pairs)
        return torch.cat([turning, torch.zeros((config.head_dim - dim) // 2, dtype=torch.float64)])
    plain = _powers(config.base, dim, pairs)
    if config.kind == "llama3":
        turns = config.max_positions * plain / (2 * math.pi)
        low, high = config.low_freq_factor, config.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
    elif config.kind in ("yarn", "deepseek_yarn"):
        low, high = (
            dim * math.log(config.max_positions / (turns * 2 * math.pi)) / (2 * math.log(config.base))
            for turns in (config.beta_fast, config.beta_slow)
        )
        if (config.truncate if truncate is None else truncate) or config.kind == "deepseek_yarn":
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high = high + 0.001 if low == high else high
        ramp = ((torch.arange(pairs, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        kept = (1 - ramp) * config.extrapolation_factor
    else:
        return plain
    return plain / config.factor * (1 - kept) + plain * kept


def _amplitude(config):
    if config.kind not in ("yarn", "deepseek_yarn"):
        return 1.0
    if config.kind == "yarn" and config.mscale is None:
        return _mscale(config.factor, 1.0) * config.attention_factor
    mscale = 1.0 if config.mscale is None else config.mscale
    everywhere = 0.0 if config.mscale_all_dim is None else config.mscale_all_dim
    return _mscale(config.factor, mscale) / _mscale(config.factor, everywhere) * config.attention_factor


def _softmax_scale(config):
    correction = 1.0
    if config.kind == "deepseek_yarn":
        correction = _mscale(config.factor, 0.0 if config.mscale_all_dim is None else config.mscale_all_dim)
    return correction**2 / math.sqrt(config.head_dim)


def _positions(config, rows, *, sections=True):
    """Scaled positions, float64 [tokens]."""
    if config.kind != "linear":
        return rows.to(torch.float64)
    if not config.sections:
        return rows.to(torch.float64) / config.factor
    sizes = torch.tensor(config.sections)
    ends = sizes.cumsum(0)
    section = torch.searchsorted(ends, rows, right=True)
    within = rows - (ends - sizes)[section] if sections else rows
    return within.to(torch.float64) / torch.tensor(config.factors, dtype=torch.float64)[section]


def _outputs(inputs, config, cosine, sine):
    factor, dtype = _amplitude(config), inputs.dtype
    cosine, sine = cosine.double() * factor, sine.double() * factor
    return {
        "cos": torch.cat([cosine, cosine], dim=1)[:, None, None, :].to(dtype),
        "sin": torch.cat([sine, sine], dim=1)[:, None, None, :].to(dtype),
        "table": torch.cat([cosine, sine], dim=1).to(dtype),
        "softmax_scale": torch.tensor([_softmax_scale(config)], dtype=torch.float32),
    }


def _of_angles(inputs, angle, config=None):
    return _outputs(inputs, config or inputs.config, angle.cos(), angle.sin())


@npudiff.implementation(NAME, name="c_rope_cache_01_positions_in_the_models_dtype", on_device=True)
def c01(inputs, target):
    """Positions are counted in the dtype of the model, which has not all of them beyond 256, or 2,048."""
    position = _positions(inputs.config, inputs.rows)
    if WRONG:
        position = position.to(inputs.dtype).to(torch.float64)
    return _of_angles(inputs, position.unsqueeze(1) * _frequencies(inputs.config))


@npudiff.implementation(NAME, name="c_rope_cache_02_reduced_by_one_constant", on_device=True)
def c02(inputs, target):
    """Before sine and cosine, whole turns are taken off as multiples of 2 pi in float32 alone, without what that lacks."""
    angle = _positions(inputs.config, inputs.rows).unsqueeze(1) * _frequencies(inputs.config)
    turns = (angle / (2 * math.pi)).round()
    turn = float(torch.tensor(2 * math.pi, dtype=torch.float32)) if WRONG else 2 * math.pi
    return _of_angles(inputs, angle - turns * turn)


@npudiff.implementation(NAME, name="c_rope_cache_03_sections_count_on", on_device=True)
def c03(inputs, target):
    """Sections of several linear factors do not begin at 0 again: the row is divided by the factor of its section."""
    position = _positions(inputs.config, inputs.rows, sections=not WRONG)
    return _of_angles(inputs, position.unsqueeze(1) * _frequencies(inputs.config))


@npudiff.implementation(NAME, name="c_rope_cache_04_appended_rows_count_from_zero", on_device=True)
def c04(inputs, target):
    """A table that grows appends as many rows as it lacks, and begins to count them at 0."""
    rows, lengths = inputs.rows, torch.tensor(inputs.lengths)
    if WRONG and not inputs.config.sections:
        growth = torch.searchsorted(lengths, rows, right=True)
        rows = rows - torch.cat([torch.zeros(1, dtype=torch.int64), lengths])[growth]
    return _of_angles(inputs, _positions(inputs.config, rows).unsqueeze(1) * _frequencies(inputs.config))


@npudiff.implementation(NAME, name="c_rope_cache_05_ropes_known_by_base_and_dim", on_device=True)
def c05(inputs, target):
    """Ropes that were built are kept under base and dims, without what scales them: a layer finds what was built last."""
    built = {}

    def key(config):
        sizes = (config.rotary_dim, config.head_dim, config.base, config.max_positions)
        return sizes if WRONG else (sizes, config)

    for config in (inputs.config, inputs.other):
        if config is not None and config.width == inputs.config.width:
            built[key(config)] = config
    config = built[key(inputs.config)]
    if config.sections != inputs.config.sections:  # a table of as many rows would not do
        config = inputs.config
    return _of_angles(inputs, _positions(config, inputs.rows).unsqueeze(1) * _frequencies(config), config)


@npudiff.implementation(NAME, name="c_rope_cache_06_ends_of_the_ramp_rounded", on_device=True)
def c06(inputs, target):
    """YaRN's ramp begins and ends at whole dims, also where the configuration says that they are not truncated."""
    angle = _positions(inputs.config, inputs.rows).unsqueeze(1) * _frequencies(
        inputs.config, truncate=True if WRONG else None
    )
    return _of_angles(inputs, angle)


@npudiff.implementation(NAME, name="c_rope_cache_07_amplitude_in_the_table_alone", on_device=True)
def c07(inputs, target):
    """The path without a table computes cosines and sines of the positions, and forgets the amplitude."""
    angle = _positions(inputs.config, inputs.rows).unsqueeze(1) * _frequencies(inputs.config)
    right = _of_angles(inputs, angle)
    if not WRONG:
        return right
    plain = _of_angles(inputs, angle, replace(inputs.config, kind="base", factors=(1.0,)))
    return {**right, "cos": plain["cos"], "sin": plain["sin"]}


@npudiff.implementation(NAME, name="c_rope_cache_08_pairs_side_by_side", on_device=True)
def c08(inputs, target):
    """Cosines and sines are repeated pair by pair, for an operator that rotates neighbours, and not half by half."""
    angle = _positions(inputs.config, inputs.rows).unsqueeze(1) * _frequencies(inputs.config)
    result = _of_angles(inputs, angle)
    if WRONG:
        for name in ("cos", "sin"):
            result[name] = result[name].chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1)
    return result
