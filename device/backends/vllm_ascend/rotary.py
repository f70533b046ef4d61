"""Rotary embedding of vllm-ascend: ``ops/rotary_embedding.py``."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm_ascend.ops.rotary_embedding import AscendApplyRotaryEmb, AscendMRotaryEmbedding, rope_forward_oot

from npudiff import Target, implementation
from npudiff.device.ascend.rotary import npu_mrope
from npudiff.device.backends.vllm_ascend.rotary_world import rotary_engine
from npudiff.device.backends.vllm_ascend.world import TRITON, triton
from npudiff.model.constraints import Box
from npudiff.reference.rotary import RotaryInputs

Outputs = dict[str, torch.Tensor]

_PLAIN: Box = {"sections": ("none",)}
_HEADS: tuple[Box, ...] = tuple({**box, **_PLAIN, "triton": ("0",)} for box in npu_mrope.constraints.boxes)
_KERNEL: Box = {
    **_PLAIN, "style": ("half", "interleaved"), "tokens": range(1, 17), "triton": ("1",),
    "dims": ("64", "32/64", "64/128", "64/192", "128", "16/80", "256"),
}  # fmt: skip
"""A program of the kernel runs after the other, in the interpreter. Of dims that are no powers of two see below."""


def _outputs(inputs: RotaryInputs, answer: tuple[torch.Tensor, torch.Tensor]) -> Outputs:
    return {"query": answer[0].view_as(inputs.query), "key": answer[1].view_as(inputs.key)}


def _rotated(inputs: RotaryInputs) -> Outputs:
    """Rotate flat queries and keys; positions are the first of a buffer."""
    with triton(inputs):
        answer = rope_forward_oot(
            inputs.positions.contiguous(), inputs.query.flatten(1), inputs.key.flatten(1), inputs.cos_sin_cache,
            inputs.query.shape[2], inputs.rotary_dim, inputs.style == "half",
        )  # fmt: skip
    return _outputs(inputs, answer)


@implementation("rotary", name="rope_forward_oot", supports=[*_HEADS, _KERNEL], options=TRITON, on_device=True)
def rope_forward(inputs: RotaryInputs, target: Target) -> Outputs:
    """rope_forward_oot on flat queries and keys: npu_mrope, or a Triton kernel."""
    return _rotated(inputs)


@implementation(
    "rotary",
    name="rope_forward_oot_of_96",
    supports={**_KERNEL, "dims": ("96", "96/128", "192", "80")},
    options={"triton": ("1",)},
    on_device=True,
)
def rope_forward_of_odd_dims(inputs: RotaryInputs, target: Target) -> Outputs:
    """rope_forward_oot by its Triton kernel where the rotated part is no power of two, as that of Phi-3 with 96."""
    return _rotated(inputs)


@implementation(
    "rotary",
    name="RotaryEmbedding.forward_static",
    supports={**_PLAIN, "style": ("half", "interleaved")},
    on_device=True,
    native=True,
)
def rope_of_vllm(inputs: RotaryInputs, target: Target) -> Outputs:
    """RotaryEmbedding.forward_static of vllm, which vllm-ascend replaces."""
    answer = RotaryEmbedding.forward_static(
        inputs.positions, inputs.query.flatten(1), inputs.key.flatten(1), inputs.query.shape[2], inputs.rotary_dim,
        inputs.cos_sin_cache, inputs.style == "half",
    )  # fmt: skip
    return _outputs(inputs, answer)


@implementation(
    "rotary",
    name="AscendMRotaryEmbedding.forward_oot",
    supports={"dims": ("128",), "sections": ("16/24/24", "24/20/20"), "style": ("half",)},
    on_device=True,
)
def mrope_forward(inputs: RotaryInputs, target: Target) -> Outputs:
    """AscendMRotaryEmbedding.forward_oot: npu_mrope for the sections of Qwen2-VL, else vllm's native way."""
    with rotary_engine(inputs.query.dtype):
        made: Any = AscendMRotaryEmbedding(
            inputs.query.shape[2], inputs.rotary_dim, 1, 10000, True, inputs.query.dtype,
            mrope_section=list(inputs.sections), mrope_interleaved=False,
        )  # fmt: skip
    made.cos_sin_cache = inputs.cos_sin_cache
    answer = made.forward_oot(inputs.positions, inputs.query.flatten(1), inputs.key.flatten(1))
    return _outputs(inputs, answer)


@implementation(
    "rotary", name="AscendApplyRotaryEmb.forward_oot", supports={**_PLAIN, "style": ("half",)}, on_device=True
)
def of_encoders(inputs: RotaryInputs, target: Target) -> Outputs:
    """AscendApplyRotaryEmb.forward_oot, as encoders of pictures call it."""
    made: Any = AscendApplyRotaryEmb.__new__(AscendApplyRotaryEmb)
    torch.nn.Module.__init__(made)
    made.is_neox_style, made.enable_fp32_compute = True, False
    cosine, sine = inputs.cos_sin_cache[inputs.positions].chunk(2, dim=-1)
    return {name: made.forward_oot(getattr(inputs, name), cosine, sine) for name in ("query", "key")}
