"""Attention of vllm-ascend, ``attention/attention_v1.py``: ``AscendAttentionBackendImpl.forward`` in its states."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from vllm_ascend.attention.attention_v1 import AscendAttentionBackendImpl

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGES, real_rows
from npudiff.device.backends.vllm_ascend.world import forward_context, metadata
from npudiff.model.constraints import Box
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_PAGES: Box = {**PAGES, "hybrid": (False,)}
_HEADS: tuple[Box, ...] = ({**_PAGES, "head_dims": ("64", "128")}, {**_PAGES, "head_dims": ("192",), "sinks": (False,)})
_DECODES: tuple[Box, ...] = tuple({**box, "query_length": (1,)} for box in _HEADS)


def _attention(inputs: SlidingAttentionInputs, state: str) -> torch.Tensor:
    """Run a forward pass of one layer; keys and values are in the cache."""
    query, pool = inputs.query, inputs.kv
    output = query.new_zeros(*query.shape[:2], pool.value_head_dim)
    layer = SimpleNamespace(_k_scale_float=1.0, _v_scale_float=1.0, layer_name="model.layers.0.self_attn.attn")
    with forward_context(query.dtype):
        attention = AscendAttentionBackendImpl(
            query.shape[1], pool.head_dim, inputs.scale, pool.kv_heads, None, inputs.window, "auto", None, "decoder",
            None, sinks=inputs.sinks,
        )  # fmt: skip
        given = (query, None, None, (pool.key, pool.value), metadata(inputs, state))
        answer: torch.Tensor = attention.forward(layer, *given, output=output)
    return real_rows(answer, inputs)


@implementation("sliding_attention", name="ChunkedPrefill", supports=_HEADS, on_device=True)
def chunked_prefill(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state ChunkedPrefill."""
    return _attention(inputs, "ChunkedPrefill")


@implementation("sliding_attention", name="PrefillCacheHit", supports=_HEADS, on_device=True)
def prefill_cache_hit(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state PrefillCacheHit."""
    return _attention(inputs, "PrefillCacheHit")


@implementation("sliding_attention", name="DecodeOnly", supports=_DECODES, on_device=True)
def decode_only(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state DecodeOnly."""
    return _attention(inputs, "DecodeOnly")
