"""Attention of vllm-ascend, ``attention/attention_v1.py``: ``AscendAttentionBackendImpl.forward`` in its states."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch.nn.functional import pad

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE, PAGES, real_rows
from npudiff.device.backends.vllm_ascend.attention_world import (
    Batch,
    engine,
    implementation_of,
    layer,
    metadata,
    replayed,
)
from npudiff.device.backends.vllm_ascend.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.sliding_attention import SlidingAttentionInputs

Boxes = tuple[Box, ...]

PAGED = {"pa_shape_list": ("0", "1")}
"""Whether batches of this size are in the configuration's list of those that paged attention decodes."""

_PAGES: Box = {**PAGES, "hybrid": (False,)}
_FUSED: Boxes = ({**_PAGES, "head_dims": ("64", "128")}, {**_PAGES, "head_dims": ("192",), "sinks": (False,)})
_QUARTER: Box = {**_PAGES, "head_dims": ("256",), "sinks": (False,)}
_LARGE: Box = {**_PAGES, "head_dims": ("512",), "sinks": (False,), "window": (None,)}
_ROW: Box = {"query_length": (1,)}
_DRAFTS: Boxes = tuple({**box, "query_length": range(1, 17)} for box in _FUSED)
_DECODES: Boxes = (
    *({**box, **_ROW, "pa_shape_list": ("0",)} for box in _FUSED),
    {**_PAGES, **_ROW, "head_dims": ("64", "128"), "sinks": (False,), "pa_shape_list": ("1",)},
    {**_LARGE, **_ROW, "pa_shape_list": ("0",)},
)
_WHOLE_PROMPTS: Boxes = tuple({**box, "kv_length": range(1, 1200)} for box in (*_FUSED, _LARGE))
"""A prompt is computed as a whole, with queries of zeros where the case has none."""


def _eager(inputs: SlidingAttentionInputs, state: str, *, paged: bool = False) -> torch.Tensor:
    """Run a forward pass of one layer; keys and values are in the cache."""
    query, pool, made = inputs.query, inputs.kv, engine(inputs, paged=paged)
    output = query.new_zeros(*query.shape[:2], pool.value_head_dim)
    batch = Batch(inputs.query_lengths, inputs.kv_lengths, pool.block_table)
    with made.here():
        given = (query, None, None, (pool.key, pool.value), metadata(made, batch, state, query.device))
        answer: torch.Tensor = implementation_of(inputs).forward(layer(), *given, output=output)
    return real_rows(answer, inputs)


def _whole_prompts(inputs: SlidingAttentionInputs) -> torch.Tensor:
    """Compute all tokens of all requests, which write their keys and values as well; return the rows of the case.

    They are written into a cache of their own: while a prompt is computed no page of it was given back, and that of the
    case has no room for what its window has left behind.
    """
    pool, made = inputs.kv, engine(inputs)
    lengths, new = inputs.kv_lengths, inputs.query_lengths
    slots = [_slots(row, length) for row, length in zip(pool.block_table, lengths, strict=True)]
    places = torch.cat(slots)
    key, value = (cache.flatten(0, 1)[places] for cache in (pool.key, pool.value))
    asked = torch.split(inputs.query, [*new, inputs.query.shape[0] - sum(new)])
    query = torch.cat([pad(one, (0, 0, 0, 0, total - len(one), 0)) for one, total in zip(asked, lengths, strict=False)])
    output = query.new_zeros(*query.shape[:2], pool.value_head_dim)
    pages = [range(0, length, PAGE) for length in lengths]
    firsts = accumulate(map(len, pages), initial=0)
    written = torch.cat([torch.arange(length) + first * PAGE for first, length in zip(firsts, lengths, strict=False)])
    caches = tuple(cache.new_zeros(sum(map(len, pages)), *cache.shape[1:]) for cache in (pool.key, pool.value))
    batch = Batch(lengths, lengths, pool.block_table, written.int().to(query.device))
    with made.here():
        given = (query, key, value, caches, metadata(made, batch, "PrefillNoCache", query.device))
        answer = implementation_of(inputs).forward(layer(), *given, output=output)
    rows = [one[len(one) - count :] for one, count in zip(torch.split(answer, list(lengths)), new, strict=True)]
    return real_rows(torch.cat(rows), inputs)


def _slots(pages: torch.Tensor, length: int) -> torch.Tensor:
    tokens = torch.arange(length, device=pages.device)
    return pages.long()[tokens // PAGE] * PAGE + tokens % PAGE


@implementation("sliding_attention", name="PrefillNoCache", supports=_WHOLE_PROMPTS, on_device=True)
def prefill_no_cache(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state PrefillNoCache: on keys and values themselves."""
    return _whole_prompts(inputs)


@implementation("sliding_attention", name="ChunkedPrefill", supports=(*_FUSED, _LARGE), on_device=True)
def chunked_prefill(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state ChunkedPrefill."""
    return _eager(inputs, "ChunkedPrefill")


@implementation("sliding_attention", name="ChunkedPrefill_of_256", supports=_QUARTER, on_device=True)
def chunked_prefill_of_256(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """The same with a head dim of 256, as Gemma 3 has it, which no document of fused attention has for rows of TND."""
    return _eager(inputs, "ChunkedPrefill")


@implementation("sliding_attention", name="PrefillCacheHit", supports=(*_FUSED, _LARGE), on_device=True)
def prefill_cache_hit(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state PrefillCacheHit."""
    return _eager(inputs, "PrefillCacheHit")


@implementation("sliding_attention", name="SpecDecoding", supports=_DRAFTS, on_device=True)
def spec_decoding(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state SpecDecoding: up to 16 rows of a request."""
    return _eager(inputs, "SpecDecoding")


@implementation("sliding_attention", name="DecodeOnly", supports=_DECODES, options=PAGED, on_device=True)
def decode_only(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttentionBackendImpl.forward, state DecodeOnly: by fused or paged attention."""
    return _eager(inputs, "DecodeOnly", paged=options_of(inputs)["pa_shape_list"] == "1")


@implementation("sliding_attention", name="DecodeOnly_graph", supports=_DECODES, options=PAGED, on_device=True)
def decode_only_graph(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """The same, captured and replayed: full_graph_fia, full_graph_fia_v2 or full_graph_pa, and update_graph_params."""
    paged = options_of(inputs)["pa_shape_list"] == "1"
    return real_rows(replayed(inputs, "DecodeOnly", paged=paged), inputs)


@implementation("sliding_attention", name="SpecDecoding_graph", supports=_DRAFTS, on_device=True)
def spec_decoding_graph(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """State SpecDecoding, captured and replayed: full_graph_fia or full_graph_fia_v2, and update_graph_params."""
    return real_rows(replayed(inputs, "SpecDecoding"), inputs)
