"""Rotary frequencies under every scaling that models ship with, and how far float32 frequencies may be from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF

KINDS = ("base", "linear", "dynamic", "llama3", "yarn", "deepseek_yarn", "proportional")
"""base: no scaling. linear: positions divided by a factor (Chen et al., 2023). dynamic: the base grows with the factor
(NTK-aware). llama3: long wavelengths divided, short ones kept. yarn: Peng et al., "YaRN", 2023. deepseek_yarn: YaRN
whose amplitude is split between table and softmax scale. proportional: frequencies of a whole head, of which the first
turn and the others are 0."""

FUNCTION_ERROR = 4 * FLOAT32_ROUNDOFF
"""Relative error of one float32 power, sine or cosine: four roundings, as for the exponential. torch needs 1.1 on x86.
What an NPU's vector unit does is not documented, so one line says it for all of them."""

POWER_ARGUMENT_ROUNDINGS = 1.0
"""Roundings of the argument of ``base ** x = exp(x ln base)``: of ``x``, the quotient ``2 i / dim``, as backends call a
power. A device whose power multiplies by a float32 logarithm rounds three times, and needs 3 here."""

FLOAT32_INTEGERS = 2**24
"""Positions up to here are float32 numbers."""


@dataclass(frozen=True)
class RopeConfig:
    """The rope of one kind of layer, in the words of model configurations."""

    kind: str = "base"
    """One of ``KINDS``; other fields than those it uses are ignored."""
    rotary_dim: int = 64
    head_dim: int = 64
    """Elements of a head that turn, and elements of a query head, which give the softmax scale."""
    base: float = 10000.0
    """``rope_theta``."""
    max_positions: int = 4096
    """Positions that the model was trained with (``original_max_position_embeddings``)."""
    factors: tuple[float, ...] = (1.0,)
    """Scaling factors; more than one for ``linear`` only, where each gets a section of the table."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """llama3: wavelengths beyond ``max_positions / low`` are divided, those below ``max_positions / high`` kept."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """YaRN: turns within ``max_positions`` from which a frequency is kept, and up to which it is divided."""
    truncate: bool = True
    """yarn: whether the dims of these turns are rounded outwards to integers."""
    extrapolation_factor: float = 1.0
    """YaRN: weight of the kept frequencies, in (0, 1]."""
    attention_factor: float = 1.0
    """YaRN: additional factor of cosines and sines."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """YaRN: coefficients of the amplitude, and of the part of it that goes into the softmax scale."""

    @property
    def width(self) -> int:
        """Columns of the table: the rotary dim, of ``proportional`` the whole head."""
        return self.head_dim if self.kind == "proportional" else self.rotary_dim

    @property
    def factor(self) -> float:
        """The scaling factor, where there is one."""
        return self.factors[0]

    @property
    def sections(self) -> tuple[int, ...]:
        """Rows of each section of a table with several linear factors; empty where there is one."""
        return tuple(int(self.max_positions * factor) for factor in self.factors) if len(self.factors) > 1 else ()


@dataclass(frozen=True)
class Frequencies:
    """Angles per position of each pair, in radians."""

    value: torch.Tensor
    """float64 ``[width / 2]``."""
    relative: torch.Tensor
    """float64, of the same shape: the largest relative error of a frequency that is computed in float32."""


def frequencies(config: RopeConfig) -> Frequencies:
    """Return the frequencies of a configuration; linear factors divide positions and are not part of them.

    ``base ** (-2 i / dim)`` for pair ``i`` (Su et al., "RoFormer", 2021, sec. 3.2.2), then scaled as ``KINDS`` says.
    A float32 device rounds the power, its exponent, the reciprocal, and what the scaling computes from it. Pair 0 turns
    by exactly 1 radian per position: every power of exponent 0 is 1.

    Raises
    ------
    ValueError
        If the configuration contradicts itself.
    """
    check_config(config)
    if config.kind == "dynamic":
        return _powers(_dynamic_base(config), config.rotary_dim, config.rotary_dim // 2)
    if config.kind == "proportional":
        turning = _powers(config.base, config.head_dim, config.rotary_dim // 2)
        still = torch.zeros((config.head_dim - config.rotary_dim) // 2, dtype=torch.float64)
        return Frequencies(torch.cat([turning.value, still]), torch.cat([turning.relative, still]))
    plain = _powers(config.base, config.rotary_dim, config.rotary_dim // 2)
    if config.kind == "llama3":
        return _blended(plain, config.factor, *_llama3_share(plain, config))
    if config.kind in ("yarn", "deepseek_yarn"):
        return _blended(plain, config.factor, *_yarn_share(config))
    return plain


def amplitude(config: RopeConfig) -> float:
    """Return the factor of cosines and sines (``mscale``); 1 for every kind but YaRN."""
    if config.kind == "yarn" and config.mscale is None:
        return get_mscale(config.factor, 1.0) * config.attention_factor
    if config.kind in ("yarn", "deepseek_yarn"):
        ratio = get_mscale(config.factor, _mscale(config)) / get_mscale(config.factor, _mscale_all_dim(config))
        return ratio * config.attention_factor
    return 1.0


def softmax_scale(config: RopeConfig) -> float:
    """Return the factor of attention scores: ``1 / sqrt(head_dim)``, of DeepSeek's YaRN times ``mscale ** 2``."""
    correction = get_mscale(config.factor, _mscale_all_dim(config)) if config.kind == "deepseek_yarn" else 1.0
    return correction**2 / math.sqrt(config.head_dim)


def get_mscale(factor: float, coefficient: float) -> float:
    """Return the amplitude ``1 + coefficient * ln(factor) / 10`` ("YaRN", sec. 3.4), 1 up to factor 1."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * coefficient * math.log(factor)


def _mscale(config: RopeConfig) -> float:
    return 1.0 if config.mscale is None else config.mscale


def _mscale_all_dim(config: RopeConfig) -> float:
    return 0.0 if config.mscale_all_dim is None else config.mscale_all_dim


def _dynamic_base(config: RopeConfig) -> float:
    """The base for a table of ``factor * max_positions`` rows, computed once for all of them."""
    growth = config.factor**2 - (config.factor - 1)
    return float(config.base * growth ** (config.rotary_dim / (config.rotary_dim - 2)))


def _powers(base: float, dim: int, pairs: int) -> Frequencies:
    exponent = 2 * torch.arange(pairs, dtype=torch.float64) / dim
    argument = exponent * math.log(base)
    base_rounding = 0.0 if float(torch.tensor(base, dtype=torch.float32)) == base else FLOAT32_ROUNDOFF
    relative = (POWER_ARGUMENT_ROUNDINGS * argument + 1) * FLOAT32_ROUNDOFF + FUNCTION_ERROR + exponent * base_rounding
    relative[:1] = 0.0
    return Frequencies(torch.exp(-argument), relative)


def _blended(plain: Frequencies, factor: float, share: torch.Tensor, share_error: torch.Tensor) -> Frequencies:
    """Mix kept and divided frequencies: ``f / s * (1 - share) + f * share``.

    Shares of exactly 0 and 1 have no error of their own; ``share_error`` is 0 there.
    """
    kept = plain.value * share
    divided = plain.value / factor * (1 - share)
    mixed = (share_error > 0).to(torch.float64)
    division = 2 * FLOAT32_ROUNDOFF if factor != 1 else 0.0  # the factor, and what it divides
    error = kept * plain.relative + divided * (plain.relative + division)
    error += mixed * (3 * FLOAT32_ROUNDOFF * (kept + divided))  # 1 - share, the products, and their sum
    error += share_error * (plain.value - plain.value / factor).abs()
    value = kept + divided
    return Frequencies(value, error / value)


def _yarn_share(config: RopeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each frequency is kept: 1 up to the pair of ``beta_fast``, 0 from that of ``beta_slow``.

    The corners are computed on the host in double precision, the ramp in float32.
    """
    low, high = _corners(config)
    pair = torch.arange(config.rotary_dim // 2, dtype=torch.float64)
    ramp = (pair - low) / (high - low)
    whole = low.is_integer() and high.is_integer()  # then differences are exact, and only their quotient is rounded
    ramp_error = (ramp.abs() if whole else low / (high - low) + 3 * ramp.abs()) * FLOAT32_ROUNDOFF
    on_ramp = (ramp > -ramp_error) & (ramp < 1 + ramp_error)
    share = (1 - ramp.clamp(0, 1)) * config.extrapolation_factor
    rounding = FLOAT32_ROUNDOFF if config.extrapolation_factor != 1 else 0.0
    error = on_ramp * (ramp_error * config.extrapolation_factor + share * FLOAT32_ROUNDOFF) + 2 * share * rounding
    return share, error


def _corners(config: RopeConfig) -> tuple[float, float]:
    """Where the ramp begins and ends, in pairs."""
    low, high = (_dim_of_turns(config, turns) for turns in (config.beta_fast, config.beta_slow))
    if config.truncate or config.kind == "deepseek_yarn":
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, config.rotary_dim - 1.0)
    return low, high + 0.001 if low == high else high


def _dim_of_turns(config: RopeConfig, turns: float) -> float:
    """The pair that makes so many turns within ``max_positions`` ("YaRN", sec. 3.2)."""
    logarithm = math.log(config.max_positions / (turns * 2 * math.pi))
    return config.rotary_dim * logarithm / (2 * math.log(config.base))


def _llama3_share(plain: Frequencies, config: RopeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each frequency is kept: a ramp over the turns within ``max_positions``, from low to high factor."""
    low, high = config.low_freq_factor, config.high_freq_factor
    turns = config.max_positions * plain.value / (2 * math.pi)
    ramp = (turns - low) / (high - low)
    # 2 pi, its quotient by the frequency, the quotient of the positions by that; then difference and quotient
    error = turns / (high - low) * (plain.relative + 3 * FLOAT32_ROUNDOFF) + 3 * FLOAT32_ROUNDOFF * ramp.abs()
    on_ramp = (ramp > -error) & (ramp < 1 + error)
    return ramp.clamp(0, 1), on_ramp * error


def check_config(config: RopeConfig) -> None:
    """Refuse a configuration that contradicts itself; raises ``ValueError``."""
    if config.kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {config.kind}")
    if config.rotary_dim % 2 or not 4 <= config.rotary_dim <= config.head_dim or config.head_dim % 2:
        raise ValueError(f"rotary_dim must be even, in 4..head_dim, got {config.rotary_dim} of {config.head_dim}")
    if not 2 <= config.base <= 1e12 or not 1 <= config.max_positions <= FLOAT32_INTEGERS:
        raise ValueError(f"base {config.base} or max_positions {config.max_positions} out of range")
    if not config.factors or not all(1 <= factor <= 4096 for factor in config.factors):
        raise ValueError(f"factors must lie in 1..4096, got {config.factors}")
    if len(config.factors) > 1 and (
        config.kind != "linear" or any((config.max_positions * factor) % 1 for factor in config.factors)
    ):
        raise ValueError("several factors are for linear scaling, with sections of whole rows")
    if not 0 < config.low_freq_factor < config.high_freq_factor <= 4096:
        raise ValueError(f"low and high factor must rise, got {config.low_freq_factor}, {config.high_freq_factor}")
    if config.kind in ("yarn", "deepseek_yarn"):
        _check_yarn(config)


def _check_yarn(config: RopeConfig) -> None:
    if not 0 < config.beta_slow <= config.beta_fast <= 4096 or config.max_positions < 2 * math.pi * config.beta_slow:
        raise ValueError(
            f"betas {config.beta_fast}, {config.beta_slow} must fall, and the slow one lie within max_positions"
        )
    low, high = _corners(config)
    if low > high:
        raise ValueError(f"the ramp would begin at pair {low:g} and end at {high:g}: the base is too small")
    if not 0 < config.extrapolation_factor <= 1 or not 0 < config.attention_factor <= 16:
        raise ValueError("extrapolation_factor must lie in (0, 1], attention_factor in (0, 16]")
    given = [value for value in (config.mscale, config.mscale_all_dim) if value is not None]
    smallest = 0.0 if config.kind == "deepseek_yarn" else 1e-6  # sources differ on whether 0 is configured for yarn
    if len(given) == 1 or not all(smallest <= value <= 16 for value in given):
        raise ValueError(f"mscale and mscale_all_dim go together, in {smallest:g}..16, got {given}")
