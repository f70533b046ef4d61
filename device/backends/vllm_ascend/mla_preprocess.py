"""MLAPO of vllm-ascend: weights as ``AscendMLAImpl`` prepares them, and ``mla_preprocess_only_decode``."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from vllm_ascend.device.device_op import BaseDeviceAdaptor

from npudiff import Target, implementation
from npudiff.device.ascend.mla_preprocess import Outputs, caches, declared, tables
from npudiff.device.ascend.mlapo import BUILT_IN, HIDDEN_OFFSET, QUERY_OFFSET, whole
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.latent_world import latent_attention, norm, projection
from npudiff.reference.mla_preprocess import MlaPreprocessInputs


@implementation(
    "mla_preprocess",
    name="mla_preprocess_only_decode",
    supports={**BUILT_IN, "layout": ("PA_BSND",), "page_size": (PAGE,)},
    on_device=True,
)
def of_decode(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """AscendMLAImpl._process_weights_for_fused_mlapo, and mla_preprocess_only_decode."""
    steps = inputs.steps
    assert steps is not None  # noqa: S101 - quantised cases have them
    rank, tokens = len(inputs.q_a_norm), len(inputs.hidden)
    down = torch.cat([whole(inputs.q_a_weight, steps.q_a), whole(inputs.kv_a_weight, steps.kv_a)], dim=1)
    attention = latent_attention(
        q_lora_rank=rank,
        kv_lora_rank=inputs.latent_dim,
        qk_nope_head_dim=inputs.nope_dim,
        qk_rope_head_dim=inputs.rope_dim,
        num_heads=inputs.heads,
        fused_qkv_a_proj=projection(down, torch.cat([steps.q_a, steps.kv_a]), steps.hidden, HIDDEN_OFFSET),
        q_proj=projection(whole(inputs.q_b_weight, steps.q_b), steps.q_b, steps.query, QUERY_OFFSET),
        q_a_layernorm=norm(inputs.q_a_norm, inputs.epsilon),
        kv_a_layernorm=norm(inputs.kv_a_norm, inputs.epsilon),
        W_UK_T=inputs.k_up_weight,
    )
    attention._process_weights_for_fused_mlapo(inputs.hidden.dtype)
    cosine, sine = (table.view(tokens, 1, 1, -1) for table in tables(inputs))
    batch = SimpleNamespace(
        num_decode_tokens=tokens, decode=SimpleNamespace(cos=cosine, sin=sine), slot_mapping=inputs.slots.int()
    )
    said, _ = BaseDeviceAdaptor.mla_preprocess_only_decode(attention, inputs.hidden, declared(inputs), batch)
    return {"query_nope": said.ql_nope, "query_rope": said.q_pe, **caches(inputs)}
