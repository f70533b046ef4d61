"""Rotary embedding of sglang: ``layers/rotary_embedding/base.py``."""

from __future__ import annotations

import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from npudiff import Target, implementation
from npudiff.device.ascend.rotary import npu_mrope
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.rotary import RotaryInputs

Outputs = dict[str, torch.Tensor]

_PLAIN: Box = {"sections": ("none",)}


def _module(inputs: RotaryInputs) -> RotaryEmbedding:
    """Build the module of a model, and give it the table of the case in place of one from a base."""
    configured()
    made = RotaryEmbedding(
        inputs.query.shape[2], inputs.rotary_dim, len(inputs.cos_sin_cache), 10000, inputs.style == "half",
        inputs.query.dtype,
    )  # fmt: skip
    made.cos_sin_cache = inputs.cos_sin_cache
    return made.to(inputs.query.device)


def _outputs(inputs: RotaryInputs, answer: tuple[torch.Tensor, torch.Tensor]) -> Outputs:
    return {"query": answer[0].view_as(inputs.query), "key": answer[1].view_as(inputs.key)}


@implementation(
    "rotary",
    name="RotaryEmbedding.forward_npu",
    supports=[{**box, **_PLAIN} for box in npu_mrope.constraints.boxes],
    on_device=True,
)
def forward_npu(inputs: RotaryInputs, target: Target) -> Outputs:
    """RotaryEmbedding.forward_npu on flat queries and keys: npu_mrope."""
    answer = _module(inputs).forward_npu(inputs.positions, inputs.query.flatten(1), inputs.key.flatten(1))
    return _outputs(inputs, answer)


@implementation(
    "rotary",
    name="RotaryEmbedding.forward_native",
    supports={**_PLAIN, "style": ("half", "interleaved")},
    on_device=True,
)
def forward_native(inputs: RotaryInputs, target: Target) -> Outputs:
    """RotaryEmbedding.forward_native."""
    answer = _module(inputs).forward_native(inputs.positions, inputs.query.flatten(1), inputs.key.flatten(1))
    return _outputs(inputs, answer)
