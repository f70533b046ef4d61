"""Rotary embedding as sglang's Ascend backend calls it, one operator per implementation."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Joined
from npudiff.reference.rotary import RotaryInputs

Outputs = dict[str, torch.Tensor]

_WHOLE_HEADS = Joined((range(2, 895, 2),))
"""Heads that turn as a whole: an even number of elements below 896."""
_SIXTEEN_BITS = ("bfloat16", "float16")


def _strips(step: int) -> Joined:
    """Heads of a multiple of so many elements, of which as many turn, or fewer."""
    return Joined((range(step, 2**16 + 1, step),) * 2, short=True)


_MROPE = {"style": ("half", "interleaved"), "sections": ("none", "16/24/24", "24/20/20", "8/12/12", "16/16/16/16")}

_PLAIN = {"sections": ("none",)}
_CONTIGUOUS = {"rows": ("contiguous",)}


@implementation(
    "rotary",
    supports=[
        {**_MROPE, "dims": _strips(32), "dtype": _SIXTEEN_BITS},
        {**_MROPE, "dims": _strips(16), "dtype": ("float32",)},
    ],
    on_device=True,
    graph=True,
)
def npu_mrope(inputs: RotaryInputs, target: Target) -> Outputs:
    """npu_mrope: positions and table go to the operator; sections [0, 0, 0] are plain rope."""
    return mrope(inputs, {"half": "half", "interleaved": "interleave"}[inputs.style])


def mrope(inputs: RotaryInputs, rotary_mode: str) -> Outputs:
    """Rotate with npu_mrope."""
    query, key = torch.ops.npu.npu_mrope(
        inputs.positions,
        inputs.query.flatten(1),
        inputs.key.flatten(1),
        inputs.cos_sin_cache,
        inputs.query.shape[2],
        mrope_section=list(inputs.sections) or [0, 0, 0],
        rotary_mode=rotary_mode,
    )
    return {"query": query.view_as(inputs.query), "key": key.view_as(inputs.key)}


@implementation(
    "rotary", supports={"style": ("half", "interleaved"), "dims": _WHOLE_HEADS, **_PLAIN}, on_device=True, graph=True
)
def npu_rotary_mul(inputs: RotaryInputs, target: Target) -> Outputs:
    """npu_rotary_mul on 4-D states, with cosines and sines spread over the whole head."""
    cosine, sine = spread(inputs)
    mode = {"half": "half", "interleaved": "interleave"}[inputs.style]
    return {
        name: torch.ops.npu.npu_rotary_mul(states.unsqueeze(0), cosine, sine, mode).squeeze(0)
        for name, states in (("query", inputs.query), ("key", inputs.key))
    }


def spread(inputs: RotaryInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the tokens, ``[1, tokens, 1, rotary_dim]``: each where the two elements of its pair are."""
    halves = inputs.cos_sin_cache[inputs.positions].chunk(2, dim=-1)
    if inputs.style == "interleaved":
        wide = [half.repeat_interleave(2, dim=-1) for half in halves]
    else:
        wide = [torch.cat([half, half], dim=-1) for half in halves]
    return wide[0][None, :, None, :], wide[1][None, :, None, :]


@implementation(
    "rotary",
    supports={"style": ("interleaved_to_half",), "dims": ("64",), "dtype": _SIXTEEN_BITS, **_PLAIN, **_CONTIGUOUS},
    on_device=True,
    graph=True,
)
def npu_interleave_rope(inputs: RotaryInputs, target: Target) -> Outputs:
    """npu_interleave_rope, as DeepSeek models call it: interleaved in, halves out."""
    cosine, sine = (part.transpose(0, 1).contiguous() for part in spread(inputs))  # [tokens, 1, 1, 64]
    return {
        name: torch.ops.npu.npu_interleave_rope(states.unsqueeze(2), cosine, sine).squeeze(2)
        for name, states in (("query", inputs.query), ("key", inputs.key))
    }


@implementation(
    "rotary",
    supports={"style": ("half",), "dims": ("64", "128"), "dtype": _SIXTEEN_BITS, **_PLAIN},
    on_device=True,
    graph=True,
)
def npu_apply_rotary_pos_emb(inputs: RotaryInputs, target: Target) -> Outputs:
    """npu_apply_rotary_pos_emb in layout BSND: queries and keys in one call, written in place."""
    cosine, sine = spread(inputs)
    query, key = torch.ops.npu.npu_apply_rotary_pos_emb(
        inputs.query.unsqueeze(0), inputs.key.unsqueeze(0), cosine, sine, "BSND"
    )
    return {"query": query.squeeze(0), "key": key.squeeze(0)}


@implementation("rotary", supports=_PLAIN, on_device=True, graph=True)
def native_rotary(inputs: RotaryInputs, target: Target) -> Outputs:
    """Composed of elementwise operators in the dtype of the states: the path without fused operators."""
    return {
        "query": rotate(inputs, inputs.query, inputs.rotary_dim),
        "key": rotate(inputs, inputs.key, inputs.rotary_dim),
    }


def rotate(inputs: RotaryInputs, states: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Rotate the first elements of each head and append the others."""
    cosine, sine = inputs.cos_sin_cache[inputs.positions].unsqueeze(1).chunk(2, dim=-1)
    part = states[..., :rotary_dim]
    if inputs.style == "half":
        first, second = part.chunk(2, dim=-1)
    else:
        first, second = part[..., 0::2], part[..., 1::2]
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    whole = torch.stack(rotated, dim=-1).flatten(-2) if inputs.style == "interleaved" else torch.cat(rotated, dim=-1)
    return torch.cat([whole, states[..., rotary_dim:]], dim=-1)


@implementation("rotary", on_device=True, graph=True)
def native_mrope(inputs: RotaryInputs, target: Target) -> Outputs:
    """Cosines and sines of each section put together to one row per token, then as ``native_rotary``."""
    if not inputs.sections:
        return native_rotary(inputs, target)
    rows = inputs.cos_sin_cache[inputs.positions]  # [sections, tokens, rotary_dim]
    return native_rotary(one_row_per_token(inputs, rows), target)


def one_row_per_token(inputs: RotaryInputs, rows: torch.Tensor) -> RotaryInputs:
    """The same rotation with a table of one row per token, whose columns come from the rows of their sections."""
    halves = [
        torch.cat([part[i] for i, part in enumerate(torch.split(half, list(inputs.sections), dim=-1))], dim=-1)
        for half in rows.chunk(2, dim=-1)
    ]
    tokens = torch.arange(len(inputs.query), device=rows.device)
    return replace(inputs, cos_sin_cache=torch.cat(halves, dim=-1), positions=tokens, sections=())
