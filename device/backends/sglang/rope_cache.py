"""Tables of cosines and sines as sglang's ``get_rope`` builds and grows them: ``layers/rotary_embedding``."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.rotary_embedding import factory

from npudiff import Target, implementation
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import configured, environment, flags_of, options_of
from npudiff.model.constraints import Box
from npudiff.reference.rope_cache import RopeCacheInputs
from npudiff.reference.rope_scaling import RopeConfig

Outputs = dict[str, torch.Tensor]

WHOLE = "SGLANG_ROPE_CACHE_FP32"
FACTOR = "factor_in_json"
"""Whether a configuration has a factor that is a whole number as ``8.0`` or as ``8``."""

OPTIONS = {WHOLE: ("0", "1"), FACTOR: ("8.0", "8")}

_LONG: Box = {"rows": range(1, 2**16 + 1)}
_SHORT: Box = {**_LONG, "max_positions": range(1, 2049), "factor": (1.0, 1.5, 2.0, 2.5, 4.0, 8.0, 16.0, 32.0, 40.0)}
"""Scaled tables have a row for each position after scaling, however few are asked for."""

_FREE, _SCALED = ("base", "llama3", "proportional"), ("linear", "dynamic", "yarn")
_DTYPES: tuple[Box, ...] = ({WHOLE: ("0",)}, {WHOLE: ("1",), "dtype": ("float32",)})


def _boxes(free: tuple[str, ...], scaled: tuple[str, ...]) -> list[Box]:
    kinds = [*([{**_LONG, "kind": free}] if free else []), {**_SHORT, "kind": scaled}]
    return [{**kind, **dtype} for kind in kinds for dtype in _DTYPES]


def _number(value: float, inputs: RopeCacheInputs) -> float:
    return int(value) if options_of(inputs)[FACTOR] == "8" and value == int(value) else value


def _scaling(config: RopeConfig, inputs: RopeCacheInputs) -> dict[str, Any] | None:
    """Return what a configuration says as ``rope_scaling``."""
    if config.kind == "base":
        return None
    factors = [_number(factor, inputs) for factor in config.factors]
    said: dict[str, Any] = {"rope_type": config.kind, "factor": factors if len(factors) > 1 else factors[0]}
    if config.kind in {"llama3", "yarn", "deepseek_yarn"}:
        said["original_max_position_embeddings"] = config.max_positions
    if config.kind == "llama3":
        said |= {"low_freq_factor": config.low_freq_factor, "high_freq_factor": config.high_freq_factor}
    if config.kind in {"yarn", "deepseek_yarn"}:
        said |= {"beta_fast": config.beta_fast, "beta_slow": config.beta_slow, "attn_factor": config.attention_factor,
                 "extrapolation_factor": config.extrapolation_factor, "truncate": config.truncate}  # fmt: skip
        said |= {} if config.mscale is None else {"mscale": config.mscale, "mscale_all_dim": config.mscale_all_dim}
    return said


def _rope(inputs: RopeCacheInputs, config: RopeConfig) -> Any:  # noqa: ANN401 - sglang's
    """Get the rope of a layer, and reserve rows for the sequences to come."""
    positions = config.max_positions if config.kind in {"linear", "dynamic"} else inputs.lengths[0]
    whole = options_of(inputs)[WHOLE] == "1"
    with environment(flags_of(inputs)), torch.device(DEVICE):
        rope: Any = factory.get_rope(
            config.head_dim, config.rotary_dim, positions, config.base, True, _scaling(config, inputs),
            torch.bfloat16 if whole else inputs.dtype,
        )  # fmt: skip
        for length in inputs.lengths if config is inputs.config and not config.sections else ():
            rope._ensure_cos_sin_cache_length(length - 1)
    return rope


def _ropes(inputs: RopeCacheInputs) -> Any:  # noqa: ANN401 - sglang's
    """Get the ropes of all layers of a model, the first of this process, and return that of the layer."""
    configured()
    factory._ROPE_DICT.clear()
    rope = _rope(inputs, inputs.config)
    if inputs.other is not None:
        _rope(inputs, inputs.other)
    return rope


@implementation(
    "rope_cache", name="get_rope", supports=_boxes(_FREE, (*_SCALED, "deepseek_yarn")), options=OPTIONS, on_device=True
)
def get_rope(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """get_rope, its table, and get_cos_sin_with_position."""
    rope = _ropes(inputs)
    rope.get_cos_sin_with_position(inputs.rows)
    return {"table": rope.cos_sin_cache[inputs.rows], "cos": rope.position_cos, "sin": rope.position_sin}


@implementation(
    "rope_cache", name="get_cos_sin_cache", supports=_boxes((), ("deepseek_yarn",)), options=OPTIONS, on_device=True
)
def get_cos_sin_cache(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """DeepseekScalingRotaryEmbedding.get_cos_sin_cache of positions and offsets."""
    cosine, sine = _ropes(inputs).get_cos_sin_cache(inputs.positions, inputs.dtype, inputs.offsets)
    return {"cos": cosine, "sin": sine}
