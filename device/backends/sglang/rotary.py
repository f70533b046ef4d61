"""Rotary embedding of sglang: ``layers/rotary_embedding``, and the kernel of sgl-kernel-npu that it calls."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import DeepseekScalingRotaryEmbedding
from sglang.srt.layers.rotary_embedding.utils import apply_rotary_pos_emb_npu

from npudiff import Target, implementation
from npudiff.device.ascend.rotary import npu_mrope, spread
from npudiff.device.backends.sglang.world import configured, environment, flags_of, kernels_are_here
from npudiff.model.constraints import Box, Joined
from npudiff.reference.rotary import RotaryInputs

Outputs = dict[str, torch.Tensor]

WHOLE = "SGLANG_ROPE_CACHE_FP32"
OPTIONS = {WHOLE: ("0", "1")}

_PLAIN: Box = {"sections": ("none",)}
_STYLES: Box = {**_PLAIN, "style": ("half", "interleaved")}
_WHOLE_HEADS = Joined((range(2, 895, 2),))
"""Heads that npu_rotary_mul takes; larger ones go to a compiled function."""


def _module(inputs: RotaryInputs, kind: type[RotaryEmbedding] = RotaryEmbedding, **more: object) -> Any:  # noqa: ANN401
    """Build the module of a model, and give it the table of the case in place of one from a base."""
    configured()
    with environment(flags_of(inputs)):
        made: Any = kind(
            inputs.query.shape[2], inputs.rotary_dim, len(inputs.cos_sin_cache), 10000, inputs.style == "half",
            dtype=inputs.query.dtype, **more,
        )  # fmt: skip
    made.cos_sin_cache = inputs.cos_sin_cache.to(made.cos_sin_cache.dtype)
    return made.to(inputs.query.device)


def _outputs(inputs: RotaryInputs, answer: tuple[torch.Tensor, torch.Tensor]) -> Outputs:
    return {"query": answer[0].view_as(inputs.query), "key": answer[1].view_as(inputs.key)}


def _flat(inputs: RotaryInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions, queries and keys as attention of a model has them: ``[tokens, heads * head_dim]``."""
    return inputs.positions, inputs.query.flatten(1), inputs.key.flatten(1)


@implementation(
    "rotary",
    name="RotaryEmbedding.forward_npu",
    supports=[{**box, **_PLAIN} for box in npu_mrope.constraints.boxes],
    options=OPTIONS,
    on_device=True,
)
def forward_npu(inputs: RotaryInputs, target: Target) -> Outputs:
    """RotaryEmbedding.forward_npu on flat queries and keys: npu_mrope."""
    return _outputs(inputs, _module(inputs).forward_npu(*_flat(inputs)))


@implementation(
    "rotary", name="RotaryEmbedding.forward_native", supports=_STYLES, options=OPTIONS, on_device=True, native=True
)
def forward_native(inputs: RotaryInputs, target: Target) -> Outputs:
    """RotaryEmbedding.forward_native."""
    return _outputs(inputs, _module(inputs).forward_native(*_flat(inputs)))


@implementation(
    "rotary",
    name="fused_rope_qk_mqa",
    supports={**_STYLES, "tokens": range(1, 33)},
    options=OPTIONS,
    on_device=True,
    requires=kernels_are_here,
)
def fused(inputs: RotaryInputs, target: Target) -> Outputs:
    """RotaryEmbedding.forward_npu on queries and keys with an axis for heads: a Triton kernel with a program per token.

    The interpreter runs one program after the other, so there are few tokens.
    """
    answer = _module(inputs).forward_npu(inputs.positions, inputs.query, inputs.key)
    return _outputs(inputs, answer)


@implementation(
    "rotary",
    name="apply_rotary_pos_emb_npu",
    supports={**_PLAIN, "style": ("half",), "dims": _WHOLE_HEADS},
    on_device=True,
)
def apply_rotary_pos_emb(inputs: RotaryInputs, target: Target) -> Outputs:
    """apply_rotary_pos_emb_npu with cosines and sines of the tokens, as vision models call it."""
    cosine, sine = (part.flatten(0, 2) for part in spread(inputs))
    return _outputs(inputs, apply_rotary_pos_emb_npu(inputs.query, inputs.key, cosine, sine))


@implementation(
    "rotary",
    name="MRotaryEmbedding.forward_npu",
    supports=[
        {**npu_mrope.constraints.boxes[0], "sections": ("none", "16/24/24", "24/20/20", "8/12/12")},
        {**npu_mrope.constraints.boxes[1], "sections": ("none", "16/24/24", "24/20/20", "8/12/12")},
    ],
    on_device=True,
)
def mrotary(inputs: RotaryInputs, target: Target) -> Outputs:
    """MRotaryEmbedding.forward_npu: positions of text go to npu_mrope, those of pictures to plain torch."""
    sections = list(inputs.sections) or None
    return _outputs(inputs, _module(inputs, MRotaryEmbedding, mrope_section=sections).forward_npu(*_flat(inputs)))


def _deepseek(inputs: RotaryInputs) -> Any:  # noqa: ANN401 - sglang's
    """Build DeepSeek's rope with both forms of the table of the case."""
    made = _module(inputs, DeepseekScalingRotaryEmbedding, scaling_factor=1.0, device="npu")
    made.cos_cached_total, made.sin_cached_total = (
        torch.cat([half, half], dim=-1).float() for half in inputs.cos_sin_cache.chunk(2, dim=-1)
    )
    return made


@implementation(
    "rotary",
    name="DeepseekScalingRotaryEmbedding.forward_npu",
    supports={
        **_PLAIN,
        "style": ("interleaved_to_half",),
        "dims": ("64", "64/128", "64/192"),
        "dtype": ("bfloat16", "float16"),
    },
    on_device=True,
)
def deepseek(inputs: RotaryInputs, target: Target) -> Outputs:
    """DeepseekScalingRotaryEmbedding.forward_npu: npu_interleave_rope."""
    return _outputs(inputs, _deepseek(inputs).forward_npu(inputs.positions, inputs.query, inputs.key))
