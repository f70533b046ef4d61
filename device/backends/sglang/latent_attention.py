"""Latent attention of sglang's Ascend backend: extend with a prefix or without, decode, verification of drafts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Implementation, Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.latent_world import Flags, LatentWorld
from npudiff.device.backends.sglang.pool_world import NZ
from npudiff.model.constraints import Box
from npudiff.reference.latent_attention import LatentAttentionInputs

FIA = "ASCEND_USE_FIA"
OPTIONS = {FIA: ("1", "0"), NZ: ("0", "1")}

_PAGES: Box = {
    "page_size": (PAGE,), "rows": ("contiguous",), "poison": ("large",), "fully_masked_rows": ("none",),
    "rank": (512,), "rope_dim": (64,), "heads": range(1, 129),
}  # fmt: skip
"""Pages of 128 tokens, as sglang's server has them on Ascend, and requests that a scheduler makes."""

_ORDERS: tuple[Box, ...] = (
    {FIA: ("1",), NZ: ("0",), "layout": ("PA_BSND",)},
    {FIA: ("1",), NZ: ("1",), "layout": ("PA_NZ",)},
)

_ABSORBED: Box = {**_PAGES, "form": ("absorbed",), "padded_rows": (0,)}
_EXPANDED: Box = {
    **_PAGES, "form": ("expanded",), "nope_dim": (128,), "value_dim": (128,), "merges": (1,), "dtype": ("bfloat16",),
    "prefix": ("none", "whole pages"), "query_length": range(1, 2**20),
}  # fmt: skip
"""Prefixes are whole pages, since sglang's radix cache and its chunks are made of them."""

Function = Callable[[LatentAttentionInputs, Target], torch.Tensor]


def _attention(name: str, *boxes: Box) -> Callable[[Function], Implementation]:
    return implementation("latent_attention", name=name, supports=boxes, options=OPTIONS, on_device=True)


def _by_heads(inputs: LatentAttentionInputs, answer: torch.Tensor) -> torch.Tensor:
    """Return ``[tokens, heads, value_dim]`` of an answer in whatever shape, with zeros for padding."""
    tokens, heads, _ = inputs.query.shape
    real = sum(inputs.query_lengths)
    output = answer.reshape(-1, heads, inputs.value_dim)[:real]
    return torch.nn.functional.pad(output, (0, 0, 0, 0, 0, tokens - real))


@_attention("forward_extend_mla", *({**_EXPANDED, **order} for order in _ORDERS))
def forward_extend(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend of heads, merged with prefixes whose pages it gathers and projects."""
    with Flags(inputs):
        world = LatentWorld(inputs, ForwardMode.EXTEND)
        return _by_heads(inputs, world.backend.forward_extend(**world.expanded(target)))


@_attention(
    "forward_decode_mla",
    *({**_ABSORBED, **order, "query_length": (1,)} for order in _ORDERS),
    {**_ABSORBED, "query_length": (1,), FIA: ("0",), NZ: ("0",), "layout": ("PA_BSND",)},
)
def forward_decode(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode over latents, eagerly; ATB's kernel without FIA or with fewer than 8 heads."""
    with Flags(inputs):
        world = LatentWorld(inputs, ForwardMode.DECODE)
        return _by_heads(inputs, world.backend.forward_decode(**world.absorbed()))


@_attention(
    "target_verify_mla",
    *({**_ABSORBED, **order, "query_length": range(2, 9), "ragged": (False,), "dtype": ("bfloat16",)}
      for order in _ORDERS),
)  # fmt: skip
def target_verify(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend over latents where drafts are verified."""
    with Flags(inputs):
        drafts = inputs.query_lengths[0]
        world = LatentWorld(inputs, ForwardMode.TARGET_VERIFY, drafts=drafts)
        return _by_heads(inputs, world.backend.forward_extend(**world.absorbed()))
