"""Rotary embedding of a model on vllm-ascend: what vllm's ``get_rope`` makes, whose classes vllm-ascend replaces."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from vllm.model_executor import custom_op
from vllm.model_executor.layers import rotary_embedding as of_vllm
from vllm_ascend.ops import rotary_embedding

from npudiff.device.backends.vllm_ascend.world import ascend_configuration, engine, engine_config
from npudiff.reference.rope_scaling import RopeConfig

CLASSES = {
    "RotaryEmbedding": "AscendRotaryEmbedding",
    "YaRNScalingRotaryEmbedding": "AscendYaRNRotaryEmbedding",
    "DeepseekScalingRotaryEmbedding": "AscendDeepseekScalingRotaryEmbedding",
    "MRotaryEmbedding": "AscendMRotaryEmbedding",
}
"""Classes of vllm, and those that vllm-ascend registers in their place."""

_REMEMBERED = ("_cos_mla", "_sin_mla", "_cos_cache", "_sin_cache", "_cos_sin_cache", "_cos", "_sin")
"""What vllm-ascend keeps of the tables of a process."""


@contextlib.contextmanager
def rotary_engine(dtype: torch.dtype, *, own: bool = True) -> Iterator[None]:
    """Be in an engine that has made no table yet, with vllm-ascend's own classes in place of vllm's or without."""
    replaced = {name: getattr(rotary_embedding, one) for name, one in CLASSES.items() if own}
    with contextlib.ExitStack() as stack:
        stack.enter_context(engine(engine_config(dtype), ascend_configuration(), is_draft_model=False))
        stack.enter_context(mock.patch.dict(custom_op.op_registry_oot, replaced))
        stack.enter_context(mock.patch.dict(of_vllm._ROPE_DICT, clear=True))
        for name in _REMEMBERED:
            stack.enter_context(mock.patch.object(rotary_embedding, name, None))
        yield


def rope_of(config: RopeConfig, rows: int, dtype: torch.dtype, device: torch.device, *, neox: bool = True) -> Any:  # noqa: ANN401
    """Return the rope of a configuration, whose table has as many rows at least, inside ``rotary_engine``."""
    named = {"deepseek_yarn": "deepseek_yarn", "base": "default"}.get(config.kind, config.kind)
    parameters: dict[str, object] = {"rope_theta": config.base, "rope_type": named, "rope_dim": config.rotary_dim}
    scaled = config.kind not in ("base", "proportional")
    if scaled:
        parameters |= {"factor": config.factor, "original_max_position_embeddings": config.max_positions}
    if config.kind == "llama3":
        parameters |= {"low_freq_factor": config.low_freq_factor, "high_freq_factor": config.high_freq_factor}
    if config.kind in ("yarn", "deepseek_yarn"):
        said = {
            "beta_fast": config.beta_fast, "beta_slow": config.beta_slow, "attn_factor": config.attention_factor,
            "extrapolation_factor": config.extrapolation_factor, "mscale": config.mscale,
            "mscale_all_dim": config.mscale_all_dim,
        }  # fmt: skip
        parameters |= {name: value for name, value in said.items() if value is not None}
        if not config.truncate:
            parameters["truncate"] = False  # configurations say nothing where it is true
    length = math.ceil(rows / config.factor) if config.kind == "linear" else rows
    with device:
        rope = of_vllm.get_rope(config.head_dim, length, neox, parameters, dtype)
    return rope.to(device)
