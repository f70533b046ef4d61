"""What stands before MLA attention in sglang: ``attention/mla_preprocess.py``, and ``forward_mla_prepare_npu``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.attention.mla_preprocess import NPUFusedMLAPreprocess
from sglang.srt.hardware_backend.npu.modules.deepseek_v2_attention_mla_npu import forward_mla_prepare_npu
from sglang.srt.layers.layer_boundary import get_attn_tp_context
from sglang.srt.layers.layer_boundary.adapters.attention import AttentionInputs

from npudiff import Target, implementation
from npudiff.device.ascend.mla_preprocess import DIMS, NO_SKIPPING, PROLOG
from npudiff.device.ascend.mlapo import BUILT_IN, HIDDEN_OFFSET, QUERY_OFFSET, whole
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.latent_layer import Int8Projection, Projection, deepseek_rope, forward_pass, norm
from npudiff.device.backends.sglang.pool_world import NZ, buffers, of_mla
from npudiff.device.backends.sglang.world import configured, options_of
from npudiff.model.constraints import Box
from npudiff.reference.mla_preprocess import MlaPreprocessInputs

Outputs = dict[str, torch.Tensor]

_LAYER = 0
"""The first layer of a pass looks up the angles, and leaves them for the others."""

MLAPO = "SGLANG_NPU_USE_MLAPO"
PLAIN_NORMS = "_disable_npu_fused_split_qk_norm"
"""Attribute of a model whose norms are not split and computed in one Triton kernel."""

_ORDERS: tuple[Box, ...] = ({NZ: ("0",), "layout": ("PA_BSND",)}, {NZ: ("1",), "layout": ("PA_NZ",)})
_ANY: Box = {**DIMS, **NO_SKIPPING, "page_size": (PAGE,)}
_UNQUANTISED: Box = {**_ANY, "quantised": (False,)}
_FEW: Box = {"tokens": range(1, 33)}
"""The interpreter runs one program of a Triton kernel after the other."""

_PREPARED: tuple[Box, ...] = (
    {**_ANY, MLAPO: ("0",), PLAIN_NORMS: ("1",)},
    {**_ANY, MLAPO: ("0",), PLAIN_NORMS: ("0",), **_FEW},
    {**_UNQUANTISED, MLAPO: ("1",), PLAIN_NORMS: ("0",)},
    {**BUILT_IN, "page_size": (PAGE,), MLAPO: ("1",), PLAIN_NORMS: ("0",)},
)


def _projections(inputs: MlaPreprocessInputs) -> tuple[Any, Any]:
    """Return the joined projection down, and the query's projection up: of floats, or of a checkpoint of W8A8."""
    steps = inputs.steps
    if steps is None:
        joined = torch.cat([inputs.q_a_weight, inputs.kv_a_weight], dim=1)
        return Projection(joined), Projection(inputs.q_b_weight)
    down = torch.cat([whole(inputs.q_a_weight, steps.q_a), whole(inputs.kv_a_weight, steps.kv_a)], dim=1)
    up = whole(inputs.q_b_weight, steps.q_b)
    return (
        Int8Projection(down, torch.cat([steps.q_a, steps.kv_a]), steps.hidden, HIDDEN_OFFSET),
        Int8Projection(up, steps.q_b, steps.query, QUERY_OFFSET),
    )


def _outputs(inputs: MlaPreprocessInputs, pool: Any, query_nope: torch.Tensor, query_rope: torch.Tensor) -> Outputs:  # noqa: ANN401
    latent, rope = (cache.view(-1) for cache in buffers(pool, _LAYER))
    return {
        "query_nope": query_nope,
        "query_rope": query_rope,
        "latent_cache": latent.view(inputs.latent_cache.shape),
        "rope_cache": rope.view(inputs.rope_cache.shape),
    }


def _preprocessed(inputs: MlaPreprocessInputs, quant_config: object) -> Outputs:
    """Build the module as a layer of DeepSeek does, and prepare a decode."""
    configured()
    pool = of_mla(inputs.latent_cache, inputs.rope_cache, PAGE, inputs, layer=_LAYER)
    down, up = _projections(inputs)
    with forward_pass(pool, inputs.latent_dim, inputs.rope_dim, inputs):
        layer = NPUFusedMLAPreprocess(
            down, norm(inputs.q_a_norm, inputs.epsilon), norm(inputs.kv_a_norm, inputs.epsilon), up,
            inputs.k_up_weight, SimpleNamespace(cos_sin_cache=inputs.cos_sin_cache), _LAYER, inputs.heads,
            inputs.nope_dim, inputs.rope_dim, inputs.nope_dim, quant_config,
        )  # fmt: skip
        said = layer.forward(inputs.positions, inputs.hidden, SimpleNamespace(out_cache_loc=inputs.slots), None)
    return _outputs(inputs, pool, said[2], said[0])


@implementation(
    "mla_preprocess",
    name="NPUFusedMLAPreprocess",
    supports=[{**_UNQUANTISED, **order} for order in _ORDERS],
    options={NZ: ("0", "1")},
    on_device=True,
)
def one_after_the_other(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """NPUFusedMLAPreprocess of a model that is not quantised: norms, products, and npu_kv_rmsnorm_rope_cache."""
    return _preprocessed(inputs, None)


@implementation(
    "mla_preprocess",
    name="NPUFusedMLAPreprocess.forward_mlapo",
    supports=[{**BUILT_IN, "page_size": (PAGE,), **order} for order in _ORDERS],
    options={NZ: ("0", "1")},
    on_device=True,
)
def mlapo(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """NPUFusedMLAPreprocess of a static W8A8 checkpoint of ModelSlim: mla_preprocess of sgl-kernel-npu."""
    return _preprocessed(inputs, None)


@implementation(
    "mla_preprocess",
    name="NPUFusedMLAPreprocess.forward_mlaprolog",
    supports=[{**PROLOG, "page_size": (PAGE,), "hidden_size": (7168,), **order} for order in _ORDERS],
    options={NZ: ("0", "1")},
    on_device=True,
)
def prolog(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """NPUFusedMLAPreprocess where kv_b_proj is left out of quantisation: npu_mla_prolog_v3."""
    return _preprocessed(inputs, SimpleNamespace(ignore=["model.layers.0.self_attn.kv_b_proj"]))


def _model(inputs: MlaPreprocessInputs) -> SimpleNamespace:
    """Return the attention of a layer, of a model whose rope is scaled."""
    down, up = _projections(inputs)
    return SimpleNamespace(
        q_lora_rank=len(inputs.q_a_norm), kv_lora_rank=inputs.latent_dim, num_local_heads=inputs.heads,
        qk_nope_head_dim=inputs.nope_dim, qk_rope_head_dim=inputs.rope_dim, v_head_dim=inputs.nope_dim,
        qk_head_dim=inputs.nope_dim + inputs.rope_dim, layer_id=_LAYER, use_dsa=False, quant_config=None,
        fused_qkv_a_proj_with_mqa=down, q_b_proj=up, w_kc=inputs.k_up_weight,
        q_a_layernorm=norm(inputs.q_a_norm, inputs.epsilon), kv_a_layernorm=norm(inputs.kv_a_norm, inputs.epsilon),
        rotary_emb=deepseek_rope(inputs.cos_sin_cache, inputs.hidden.dtype),
        **({PLAIN_NORMS: True} if options_of(inputs)[PLAIN_NORMS] == "1" else {}),
    )  # fmt: skip


@implementation(
    "mla_preprocess",
    name="forward_mla_prepare_npu",
    supports=[{**box, **order} for box in _PREPARED for order in _ORDERS],
    options={MLAPO: ("0", "1"), NZ: ("0", "1"), PLAIN_NORMS: ("1", "0")},
    on_device=True,
)
def prepared(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """forward_mla_prepare_npu, and without MLAPO the write of attention that follows it."""
    model, batch = _model(inputs), SimpleNamespace(out_cache_loc=inputs.slots, attn_cp_metadata=None)
    pool, context = of_mla(inputs.latent_cache, inputs.rope_cache, PAGE, inputs, layer=_LAYER), get_attn_tp_context()
    with forward_pass(pool, inputs.latent_dim, inputs.rope_dim, inputs):
        joined = AttentionInputs(inputs.hidden, batch, lambda rows, _: model.fused_qkv_a_proj_with_mqa(rows)[0])
        context.set_attn_inputs(joined)
        try:
            said = forward_mla_prepare_npu(model, inputs.positions, inputs.hidden, batch, None, False)
        finally:
            context.clear_attn_inputs()
        query_rope, rope, query_nope, latent = said[:4]
        if options_of(inputs)[MLAPO] == "0":
            keys = latent.view(-1, 1, inputs.latent_dim), rope.view(-1, 1, inputs.rope_dim)
            pool.set_kv_buffer(SimpleNamespace(layer_id=_LAYER), inputs.slots, *keys)
    return _outputs(inputs, pool, query_nope, query_rope)
