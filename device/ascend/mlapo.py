"""sgl-kernel-npu's mla_preprocess: from hidden states to queries and caches in one operator, with int8 weights.

Sources: sglang 0.5.23, ``hardware_backend/npu/attention/mla_preprocess.py``: weights 144-279, call 481-549.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.mla_preprocess import DIMS, NO_SKIPPING, Outputs, caches, declared, tables
from npudiff.model.constraints import Box
from npudiff.reference.mla_preprocess import Int8Steps, MlaPreprocessInputs

TILE = 32
"""Columns of a tile of int8 weights."""

HIDDEN_OFFSET, QUERY_OFFSET = 3, -5
"""Offsets of the asymmetric quantisation: any will do, none must matter."""

BUILT_IN: Box = {
    **DIMS,
    **NO_SKIPPING,
    "hidden_size": (7168,),
    "query_rank": (1536,),
    "epsilon": (1e-6,),
    "quantised": (True,),
    "rows": ("contiguous",),
}
"""Sizes, and the epsilon of the key's norm, that are built into the kernel."""


def neighbours_to_halves(columns: torch.Tensor, start: int) -> torch.Tensor:
    """Put the columns from ``start`` on in the order that the kernel rotates: even ones first, then odd ones."""
    rope = columns[..., start:]
    return torch.cat([columns[..., :start], rope[..., 0::2], rope[..., 1::2]], dim=-1)


def tiled(weight: torch.Tensor) -> torch.Tensor:
    """From int8 ``[inner, columns]`` to ``[1, inner / 32, columns, 32]``."""
    inner, columns = weight.shape
    return weight.view(inner // TILE, TILE, columns).transpose(1, 2).contiguous().unsqueeze(0)


def whole(weight: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The int8 weights whose multiples of the steps of their columns these are."""
    return (weight.float() / step).round().to(torch.int8)


def bias_of(weight: torch.Tensor, offset: int) -> torch.Tensor:
    """What takes an activation's offset out of the product again, int32 ``[columns]``."""
    return -offset * weight.sum(dim=0, dtype=torch.int32)


def mlapo(inputs: MlaPreprocessInputs, steps: Int8Steps, cache_mode: str) -> Outputs:
    """Prepare the weights as the backend does when it loads a model, and call the operator."""
    tokens, heads, device = len(inputs.hidden), inputs.heads, inputs.hidden.device
    keys = neighbours_to_halves(whole(inputs.kv_a_weight, steps.kv_a), inputs.latent_dim)
    down = torch.cat([keys, whole(inputs.q_a_weight, steps.q_a)], dim=1)
    down_steps = torch.cat([neighbours_to_halves(steps.kv_a, inputs.latent_dim), steps.q_a])
    per_head = whole(inputs.q_b_weight, steps.q_b).view(len(inputs.q_a_norm), heads, -1)
    up = neighbours_to_halves(per_head, inputs.nope_dim).flatten(1)
    up_steps = neighbours_to_halves(steps.q_b.view(heads, -1), inputs.nope_dim).flatten()
    cosine, sine = tables(inputs)
    dummy = torch.zeros_like(inputs.hidden[0])
    latent, rope = (inputs.latent_cache, inputs.rope_cache) if cache_mode == "nzcache" else declared(inputs)
    query_nope = inputs.hidden.new_empty(tokens, heads, inputs.latent_dim)
    query_rope = inputs.hidden.new_empty(tokens, heads, inputs.rope_dim)
    torch.ops.npu.mla_preprocess(
        inputs.hidden,
        dummy,
        dummy,
        tiled(down),
        down_steps * steps.hidden,
        inputs.q_a_norm,
        torch.zeros_like(inputs.q_a_norm),
        tiled(up),
        up_steps * steps.query,
        inputs.kv_a_norm,
        cosine,
        sine,
        inputs.k_up_weight,
        latent,
        rope,
        inputs.slots.to(torch.int32),
        torch.tensor([steps.hidden], dtype=inputs.hidden.dtype, device=device),
        torch.tensor([HIDDEN_OFFSET], dtype=torch.int8, device=device),
        bias_of(down, HIDDEN_OFFSET),
        torch.tensor([steps.query], dtype=inputs.hidden.dtype, device=device),
        torch.tensor([QUERY_OFFSET], dtype=torch.int8, device=device),
        bias_of(up, QUERY_OFFSET),
        cache_mode=cache_mode,
        quant_mode="per_tensor_quant_asymm",
        q_out0=query_nope,
        kv_cache_out0=latent,
        q_out1=query_rope,
        kv_cache_out1=rope,
    )
    return {"query_nope": query_nope, "query_rope": query_rope, **caches(inputs)}


@implementation(
    "mla_preprocess",
    name="mlapo",
    supports={**BUILT_IN, "layout": ("PA_BSND",), "page_size": (*range(1, 129), 256)},
    on_device=True,
)
def mlapo_nd(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """mla_preprocess with int8 weights, cache mode krope_ctkv."""
    assert inputs.steps is not None  # noqa: S101 - quantised cases have them
    return mlapo(inputs, inputs.steps, "krope_ctkv")


@implementation("mla_preprocess", supports={**BUILT_IN, "layout": ("PA_NZ",), "page_size": (128,)}, on_device=True)
def mlapo_nz(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """mla_preprocess with int8 weights, cache mode nzcache."""
    assert inputs.steps is not None  # noqa: S101 - quantised cases have them
    return mlapo(inputs, inputs.steps, "nzcache")
