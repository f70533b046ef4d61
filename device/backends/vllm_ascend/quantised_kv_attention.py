"""Attention of vllm-ascend over a cache of int8: ``AscendC8AttentionBackendImpl.forward`` in its states.

What follows a key that is int8 beside no block table (attention_v1.py 2174) is in none of them: a pass that is given
keys attends to these as they are.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.quantised_kv_attention import with_padding
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.c8_world import NEW_TOKENS, attended, decodes_first, replayed, whole
from npudiff.device.backends.vllm_ascend.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.quantised_kv_attention import QuantisedKvAttentionInputs

Outputs = dict[str, torch.Tensor]
Boxes = tuple[Box, ...]

_NZ: Box = {
    "layout": ("PA_NZ",), "page_size": (PAGE,), "rows": ("contiguous",), "poison": ("large",),
    "fully_masked_rows": ("none",), "form": ("channel", "tensor"), "kv_length": range(1, 2**20),
}  # fmt: skip
"""Cases that a scheduler makes, and checkpoints that the quantisation method loads."""

_FUSED: Box = {**_NZ, "head_dim": (128,), "dtype": ("bfloat16",)}
"""What the operator takes of pages of int8 in NZ."""

_DENSE: Box = {**_NZ, "head_dim": (64, 128, 192), "query_length": range(1, 2**20)}
"""What is dequantised first."""

_ROW: Box = {**_FUSED, "query_length": (1,)}
_DRAFT: Box = {"query_length": range(1, 17)}


def _both(box: Box) -> Boxes:
    """Cases whose new tokens are in the cache, and of others those whose integers come back as they were."""
    back: Box = {"new_tokens": ("written",), "spread": ("powers of two",), "offsets": ("none", "whole")}
    return {**box, "new_tokens": ("cached",)}, {**box, **back}


def _written(inputs: QuantisedKvAttentionInputs) -> bool:
    return options_of(inputs)["new_tokens"] == "written"


def _output(answer: torch.Tensor, inputs: QuantisedKvAttentionInputs) -> Outputs:
    """Rows of requests, and zeros for padding."""
    return with_padding(inputs, answer.view(-1, *inputs.query.shape[1:])[: sum(inputs.query_lengths)])


@implementation(
    "quantised_kv_attention", name="PrefillNoCache", supports={**_DENSE, "kv_length": range(1, 1200)}, on_device=True
)
def prefill_no_cache(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """AscendC8AttentionBackendImpl.forward, state PrefillNoCache: on keys and values themselves."""
    prompts, lengths = whole(inputs), inputs.kv_lengths
    answer = torch.split(attended(prompts, "PrefillNoCache", written=True), list(lengths))
    rows = [one[len(one) - count :] for one, count in zip(answer, inputs.query_lengths, strict=True)]
    return _output(torch.cat(rows), inputs)


def _ordered(inputs: QuantisedKvAttentionInputs, drafts: int = 0) -> Outputs:
    """State ChunkedPrefill: decodes, or drafts, before prompts."""
    batch, places = decodes_first(inputs, 1 + drafts)
    answer = attended(batch, "ChunkedPrefill", written=_written(inputs), drafts=drafts)
    back = torch.empty_like(answer)
    back[places] = answer
    return _output(back, inputs)


@implementation(
    "quantised_kv_attention", name="ChunkedPrefill",
    supports=_both({**_DENSE, "head_dim": (128,), "dtype": ("bfloat16",)}), options=NEW_TOKENS, on_device=True,
)  # fmt: skip
def chunked_prefill(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """State ChunkedPrefill: decodes by the operator, pieces of prompts over dequantised keys and values."""
    return _ordered(inputs)


@implementation(
    "quantised_kv_attention", name="ChunkedPrefill_of_drafts", supports=_both({**_FUSED, **_DRAFT}),
    options=NEW_TOKENS, on_device=True,
)  # fmt: skip
def chunked_prefill_of_drafts(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """State ChunkedPrefill of an engine that drafts by Eagle or from n-grams: drafts are counted as decodes."""
    return _ordered(inputs, max(1, max(inputs.query_lengths) - 1))


@implementation(
    "quantised_kv_attention", name="PrefillCacheHit", supports=_both(_DENSE), options=NEW_TOKENS, on_device=True
)
def prefill_cache_hit(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """State PrefillCacheHit: over dequantised keys and values, those of this pass among them."""
    return _output(attended(inputs, "PrefillCacheHit", written=_written(inputs)), inputs)


@implementation(
    "quantised_kv_attention", name="SpecDecoding", supports=_both({**_DENSE, **_DRAFT}), options=NEW_TOKENS,
    on_device=True,
)  # fmt: skip
def spec_decoding(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """State SpecDecoding, of an engine that drafts by MTP: over dequantised keys and values."""
    drafts = max(1, max(inputs.query_lengths) - 1)
    answer = attended(inputs, "SpecDecoding", written=_written(inputs), drafts=drafts, method="mtp")
    return _output(answer, inputs)


@implementation("quantised_kv_attention", name="DecodeOnly", supports=_both(_ROW), options=NEW_TOKENS, on_device=True)
def decode_only(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """State DecodeOnly: by the operator, on pages."""
    return _output(attended(inputs, "DecodeOnly", written=_written(inputs)), inputs)


@implementation(
    "quantised_kv_attention", name="DecodeOnly_graph", supports=_both(_ROW), options=NEW_TOKENS, on_device=True
)
def decode_only_graph(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """The same, captured and replayed: full_graph_fia, and update_graph_params."""
    return _output(replayed(inputs, "DecodeOnly", written=_written(inputs)), inputs)


@implementation(
    "quantised_kv_attention", name="SpecDecoding_graph", supports=_both({**_FUSED, **_DRAFT}), options=NEW_TOKENS,
    on_device=True,
)  # fmt: skip
def spec_decoding_graph(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """State SpecDecoding, captured and replayed."""
    drafts = max(1, max(inputs.query_lengths) - 1)
    return _output(replayed(inputs, "SpecDecoding", written=_written(inputs), drafts=drafts), inputs)
