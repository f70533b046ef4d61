"""Tables of rotary embedding on vllm-ascend: ``ops/rotary_embedding.py``, and vllm's classes that it keeps."""

from __future__ import annotations

import torch
from vllm_ascend.ops.rotary_embedding import get_cos_and_sin_mla

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.rotary_world import rope_of, rotary_engine
from npudiff.model.constraints import Box
from npudiff.reference.rope_cache import RopeCacheInputs

Outputs = dict[str, torch.Tensor]

_WHOLE: Box = {"growths": (0,), "sections": (1,)}
_ANY: Box = {**_WHOLE, "kind": ("base", "linear", "llama3", "proportional"), "rows": range(1, 16_385)}
_SHORT: Box = {"max_positions": (4096,), "factor": (1.0, 1.5, 2.0, 2.5, 4.0, 8.0, 16.0), "rows": range(1, 4097)}
_TRAINED: tuple[Box, ...] = (
    _SHORT,
    {**_SHORT, "max_positions": (8192,), "factor": (1.0, 2.0, 2.5, 4.0)},
    {"max_positions": (32_768,), "factor": (1.0, 2.0), "rows": range(1, 32_769)},
    {"max_positions": (4096,), "factor": (4.0, 8.0, 16.0), "rows": range(1, 16_385)},
)
"""A table of YaRN has as many rows as positions were trained, times the factor, and is made for each case."""
_YARN: tuple[Box, ...] = tuple({**_WHOLE, **box, "kind": ("yarn",), "mscales": ("none",)} for box in _TRAINED)
_DEEPSEEK: tuple[Box, ...] = tuple({**_WHOLE, **box, "kind": ("deepseek_yarn",)} for box in _TRAINED)


@implementation("rope_cache", name="get_rope", supports=(_ANY, *_YARN, *_DEEPSEEK), on_device=True)
def of_get_rope(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Rows of ``cos_sin_cache`` of the class that vllm's get_rope makes."""
    return _table(inputs, own=True)


@implementation("rope_cache", name="get_rope_of_vllm", supports=(_ANY, *_YARN), on_device=True, native=True)
def of_vllm(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """The same of vllm's own classes, but for DeepSeek's, whose table asks for a CUDA device."""
    return _table(inputs, own=False)


def _table(inputs: RopeCacheInputs, *, own: bool) -> Outputs:
    with rotary_engine(inputs.dtype, own=own):
        rope = rope_of(inputs.config, inputs.lengths[-1], inputs.dtype, inputs.positions.device)
        if inputs.other is not None:
            rope_of(inputs.other, inputs.lengths[-1], inputs.dtype, inputs.positions.device)
        return {"table": rope.cos_sin_cache[inputs.rows].to(inputs.dtype)}


@implementation(
    "rope_cache",
    name="get_cos_and_sin_mla",
    supports=[{**box, "other": ("none",)} for box in ({**_ANY, "kind": ("base",)}, *_DEEPSEEK)],
    on_device=True,
)
def of_latent_attention(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """get_cos_and_sin_mla, which reads the tables that the only rope of a model left behind."""
    with rotary_engine(inputs.dtype):
        rope_of(inputs.config, inputs.lengths[-1], inputs.dtype, inputs.positions.device, neox=False)
        cosine, sine = get_cos_and_sin_mla(inputs.rows)
        return {"cos": cosine.to(inputs.dtype), "sin": sine.to(inputs.dtype)}
