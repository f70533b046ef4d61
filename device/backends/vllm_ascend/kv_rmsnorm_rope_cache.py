"""Latent attention's write into its cache on vllm-ascend: ``AscendMLAImpl.exec_kv_prefill``, ``exec_kv_decode``."""

from __future__ import annotations

from typing import Any

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.kv_rmsnorm_rope_cache import ND, OPERATOR, PAGED, caches, half_tables
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.latent_world import latent_attention, norm
from npudiff.model.constraints import Box
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs

Outputs = dict[str, torch.Tensor]

_PAGES: Box = {**OPERATOR, **ND, **PAGED, "page_size": (PAGE,), "quantised": (False,)}


def _arguments(inputs: KvRmsnormRopeCacheInputs) -> tuple[Any, ...]:
    """Return the attention of a layer, and what its methods take."""
    attention = latent_attention(
        kv_lora_rank=inputs.latent_dim,
        qk_rope_head_dim=inputs.rope_dim,
        kv_a_layernorm=norm(inputs.weight, inputs.epsilon),
    )
    rows = inputs.kv.flatten(0, 1)
    positions = inputs.positions.flatten()
    cosine, sine = (one.view(len(rows), 1, 1, -1) for one in half_tables(inputs.cos_sin_cache, positions))
    shape = (inputs.latent_cache.shape[0], inputs.page_size, 1, -1)
    cache = (inputs.latent_cache.view(shape), inputs.rope_cache.view(shape))
    return attention, (rows, cosine, sine, cache, inputs.slots.flatten())


@implementation("kv_rmsnorm_rope_cache", name="exec_kv_prefill", supports=_PAGES, on_device=True)
def of_prefill(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """AscendMLAImpl.exec_kv_prefill, which returns what it wrote as well."""
    attention, given = _arguments(inputs)
    rope, latent = attention.exec_kv_prefill(*given)
    batch, length, _ = inputs.kv.shape
    return {"rope": rope.view(batch, length, -1), "latent": latent.view(batch, length, -1), **caches(inputs)}


@implementation("kv_rmsnorm_rope_cache", name="exec_kv_decode", supports=_PAGES, on_device=True)
def of_decode(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """AscendMLAImpl.exec_kv_decode."""
    attention, given = _arguments(inputs)
    attention.exec_kv_decode(*given)
    return caches(inputs)
