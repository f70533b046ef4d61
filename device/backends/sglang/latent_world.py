"""The world of one call of latent attention of sglang: a pool of latents, the backend of a model with MLA, layers."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.hardware_backend.npu.attention import mla_preprocess
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from npudiff import Target
from npudiff.device.ascend.latent_attention import ExpandedCall, rounded
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.attention_world import (
    Model,
    attention_backend,
    forward_batch,
    no_speculation,
    taken_out,
)
from npudiff.device.backends.sglang.pool_world import DEVICE, buffers, fill, mla_pool
from npudiff.device.backends.sglang.world import environment, flags_of
from npudiff.reference.latent_attention import LatentAttentionInputs

NOPE_DIM = 128
"""Of a model with latents, where a case says nothing of it."""


class LatentWorld:
    """What a forward pass of one layer needs; flags hold until it is closed, since sglang reads some in each call."""

    def __init__(self, inputs: LatentAttentionInputs, mode: ForwardMode, *, drafts: int | None = None) -> None:
        self.inputs = inputs
        pages, table = inputs.pool, inputs.pool.block_table
        pool = mla_pool(len(pages.key), PAGE, (inputs.rank, inputs.rope_dim), pages.key.dtype)
        fill(pool, 0, pages.key, pages.value)
        length = max((*inputs.kv_lengths, 1))
        requests = ReqToTokenPool(len(inputs.kv_lengths), length + PAGE, DEVICE, False)
        tokens = torch.arange(length, device=table.device)
        slots = table.long()[:, tokens // PAGE] * PAGE + tokens % PAGE
        requests.req_to_token[1 : len(table) + 1, :length] = slots.to(requests.req_to_token.dtype)
        nope = NOPE_DIM if inputs.up is None else inputs.query.shape[2]
        dims = {"kv_lora_rank": inputs.rank, "qk_rope_head_dim": inputs.rope_dim, "qk_nope_head_dim": nope}
        self.model = Model(inputs.query.dtype, inputs.query.shape[1], latent=dims)
        self.backend = attention_backend(pool, requests, self.model, drafts=drafts)
        padding = len(inputs.query) - sum(inputs.query_lengths)
        lengths = inputs.query_lengths, inputs.kv_lengths
        self.batch: ForwardBatch = forward_batch(mode, requests, *lengths, padding=padding, drafts=drafts)
        self.backend.init_forward_metadata(self.batch)

    def layer(self) -> Any:  # noqa: ANN401 - sglang's
        """Return the layer of decode and verification, over latents, or that of prefill, over heads."""
        inputs = self.inputs
        heads, width = inputs.query.shape[1], inputs.query.shape[2] + inputs.rope_dim
        kv_heads = 1 if inputs.up is None else heads
        made = RadixAttention(heads, width, inputs.scale, kv_heads, 0, v_head_dim=inputs.value_dim)
        if inputs.up is not None:
            both = torch.cat([inputs.up.key, inputs.up.value.transpose(1, 2)], dim=1).flatten(0, 1)
            made.kv_b_proj = lambda latents: (rounded(latents, both.t()), None)
        return made

    def absorbed(self) -> dict[str, Any]:
        """Arguments over latents; those of the new tokens are in the pool already."""
        inputs = self.inputs
        return {
            "q": inputs.query.contiguous(),
            "k": None,
            "v": None,
            "q_rope": inputs.query_rope.contiguous(),
            "layer": self.layer(),
            "forward_batch": self.batch,
            "save_kv_cache": False,
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments over latents of a pass that writes the new tokens."""
        inputs, rows = self.inputs, len(self.inputs.query)
        empty = {
            "k": inputs.query.new_zeros(rows, 1, inputs.rank),
            "k_rope": inputs.query.new_zeros(rows, 1, inputs.rope_dim),
        }
        return {**self.absorbed(), **empty}

    @property
    def algorithm(self) -> Any:  # noqa: ANN401 - what sglang's enumeration answers
        """How drafts are made: not in a way that attention has to know."""
        return no_speculation()

    def taken_out(self, poison: float, slots: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return latents and rope keys of new tokens, or of some slots, and put poison in their place."""
        slots = self.batch.out_cache_loc[: sum(self.inputs.query_lengths)] if slots is None else slots
        pool = self.backend.token_to_kv_pool
        strips = self.inputs.pool.layout == "PA_NZ"
        return {
            name: taken_out(cache, slots, poison, strips=strips)
            for name, cache in zip(("k", "k_rope"), buffers(pool, 0), strict=True)
        }

    def expanded(self, target: Target) -> dict[str, Any]:
        """Arguments over heads: keys and values of the new tokens, as the layer before makes them."""
        inputs = self.inputs
        call = ExpandedCall(inputs, target)
        latents, ropes = call.gathered(call.prefixes, list(inputs.query_lengths))
        keys, values = call.expanded(latents)
        padding = len(inputs.query) - len(keys)
        key = torch.cat([keys, call.for_all_heads(ropes)], dim=-1)
        key, values = (torch.nn.functional.pad(part, (0, 0, 0, 0, 0, padding)) for part in (key, values))
        query = torch.cat([inputs.query, inputs.query_rope], dim=-1)
        return {
            "q": query,
            "k": key,
            "v": values,
            "layer": self.layer(),
            "forward_batch": self.batch,
            "save_kv_cache": False,
        }


class Flags:
    """The flags of a case, for as long as sglang works on it; what it remembers of them is forgotten on both ends."""

    def __init__(self, inputs: object) -> None:
        self._values = environment(flags_of(inputs))

    def __enter__(self) -> None:
        self._values.__enter__()
        _forget()

    def __exit__(self, *error: object) -> None:
        self._values.__exit__(None, None, None)
        _forget()


def _forget() -> None:
    for name in ("is_fia_nz", "is_mla_preprocess_enabled"):
        clear = getattr(getattr(mla_preprocess, name, None), "cache_clear", None)
        if clear is not None:
            clear()
