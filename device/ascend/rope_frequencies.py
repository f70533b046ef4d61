"""Inverse frequencies as rope classes compute them when they are built: float32, on the device."""

from __future__ import annotations

import math

import torch

from npudiff.reference.rope_scaling import RopeConfig


def inverse_frequencies(config: RopeConfig, device: str) -> torch.Tensor:
    """Return float32 ``[width / 2]``: what a position is multiplied by."""
    if config.kind == "dynamic":
        longest = config.max_positions * config.factor
        stretched = config.factor * longest / config.max_positions - (config.factor - 1)
        base = config.base * stretched ** (config.rotary_dim / (config.rotary_dim - 2))
        return 1.0 / powers(base, config.rotary_dim, device)
    if config.kind == "llama3":
        return llama3(config, device)
    if config.kind in ("yarn", "deepseek_yarn"):
        return yarn(config, device)
    if config.kind == "proportional":
        turning = 1.0 / powers(config.base, config.head_dim, device)[: config.rotary_dim // 2]
        return torch.nn.functional.pad(turning, (0, (config.head_dim - config.rotary_dim) // 2))
    return 1.0 / powers(config.base, config.rotary_dim, device)


def powers(base: float, dim: int, device: str) -> torch.Tensor:
    """The base to the even dims over ``dim``."""
    even = torch.arange(0, dim, 2, dtype=torch.float32, device=device)
    return torch.pow(base, even / dim)


def llama3(config: RopeConfig, device: str) -> torch.Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between mixed."""
    plain = 1.0 / powers(config.base, config.rotary_dim, device)
    wavelength = 2 * math.pi / plain
    low, high = config.low_freq_factor, config.high_freq_factor
    smooth = (config.max_positions / wavelength - low) / (high - low)
    mixed = (1 - smooth) * plain / config.factor + smooth * plain
    scaled = torch.where(wavelength > config.max_positions / low, plain / config.factor, mixed)
    return torch.where(wavelength < config.max_positions / high, plain, scaled)


def yarn(config: RopeConfig, device: str) -> torch.Tensor:
    """Interpolated and extrapolated frequencies, mixed by a mask that falls along a ramp."""
    wide = powers(config.base, config.rotary_dim, device)
    extrapolated = 1.0 / wide
    interpolated = 1.0 / (config.factor * wide)
    low, high = correction_range(config)
    pairs = torch.arange(config.rotary_dim // 2, dtype=torch.float32, device=device)
    ramp = torch.clamp((pairs - low) / (high - low), 0, 1)
    mask = (1 - ramp) * config.extrapolation_factor
    return interpolated * (1 - mask) + extrapolated * mask


def correction_range(config: RopeConfig) -> tuple[float, float]:
    """Dims where the ramp begins and ends; DeepSeek's class always rounds them outwards."""

    def dim(turns: float) -> float:
        wavelength = config.max_positions / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(wavelength) / (2 * math.log(config.base))

    low, high = dim(config.beta_fast), dim(config.beta_slow)
    if config.truncate or config.kind == "deepseek_yarn":
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    return low, high + 0.001 if low == high else high


def yarn_mscale(factor: float, coefficient: float) -> float:
    """The attention temperature that YaRN recommends."""
    return 1.0 if factor <= 1 else 0.1 * coefficient * math.log(factor) + 1.0


def mscale(config: RopeConfig) -> float:
    """What a class multiplies cosines and sines by; only the YaRN classes have it."""
    if config.kind == "yarn":
        if config.mscale is None or config.mscale_all_dim is None:
            return yarn_mscale(config.factor, 1.0) * config.attention_factor
        ratio = yarn_mscale(config.factor, config.mscale) / yarn_mscale(config.factor, config.mscale_all_dim)
        return ratio * config.attention_factor
    if config.kind == "deepseek_yarn":
        over = yarn_mscale(config.factor, 1.0 if config.mscale is None else config.mscale)
        under = yarn_mscale(config.factor, 0.0 if config.mscale_all_dim is None else config.mscale_all_dim)
        return over / under * config.attention_factor
    return 1.0


def softmax_scale(config: RopeConfig) -> float:
    """The factor of scores: DeepSeek models correct it by the amplitude that their table leaves out."""
    scale = 1.0 / math.sqrt(config.head_dim)
    if config.kind == "deepseek_yarn" and config.mscale_all_dim:
        correction = yarn_mscale(config.factor, config.mscale_all_dim)
        scale = scale * correction * correction
    return scale
