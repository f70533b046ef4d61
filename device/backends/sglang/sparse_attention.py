"""Attention over chosen keys in sglang's Ascend backend, ``forward_sparse``: prompts, steps, and drafts."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.latent_world import Flags, LatentWorld
from npudiff.device.backends.sglang.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.latent_attention import LatentAttentionInputs
from npudiff.reference.sparse_attention import SparseAttentionInputs

Outputs = dict[str, torch.Tensor]

WRITES = {"save_kv_cache": ("0", "1")}
"""Whether the call writes the new tokens, as it does where no fused operator has done so before."""

_HERE: Box = {
    "form": ("16 bits",), "page_size": (PAGE,), "padded_rows": (0,), "rows": ("contiguous",), "poison": ("large",),
    "heads": (*range(1, 65), 128), "dtype": ("bfloat16",), "query_length": range(1, 2**20),
}  # fmt: skip
"""Models of DeepSeek-V3.2's kind, whose weights are bfloat16, over pages of 128 tokens."""

_POISON = 1e4


def _attended(inputs: SparseAttentionInputs, mode: ForwardMode, drafts: int | None = None) -> Outputs:
    """Build the pool, the backend and a batch, and have the layer attend."""
    latent = LatentAttentionInputs(
        inputs.query, inputs.query_rope, inputs.pool, inputs.query_lengths, inputs.kv_lengths, inputs.scale
    )
    with Flags(inputs):
        world = LatentWorld(latent, mode, drafts=drafts)
        given: dict[str, Any] = world.absorbed()
        if options_of(inputs)["save_kv_cache"] == "1":
            given |= {**world.taken_out(_POISON), "save_kv_cache": True}
        decode = mode == ForwardMode.DECODE
        attend = world.backend.forward_decode if decode else world.backend.forward_extend
        answer = attend(**given, topk_indices=inputs.indices.squeeze(1))
    return {"output": answer.reshape(inputs.query.shape)}


@implementation("sparse_attention", name="forward_extend", supports=_HERE, options=WRITES, on_device=True)
def extended(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """``AscendAttnBackend.forward_extend`` with chosen keys: prompts, and their pieces."""
    return _attended(inputs, ForwardMode.EXTEND)


@implementation(
    "sparse_attention", name="forward_decode", supports={**_HERE, "query_length": (1,)}, options=WRITES, on_device=True
)
def decoded(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """``AscendAttnBackend.forward_decode`` with chosen keys."""
    return _attended(inputs, ForwardMode.DECODE)


@implementation(
    "sparse_attention",
    name="target_verify",
    supports=tuple({**_HERE, "query_length": (count,)} for count in range(2, 7)),
    options=WRITES,
    on_device=True,
)
def verified(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """``AscendAttnBackend.forward_extend`` with chosen keys, where drafts are verified."""
    return _attended(inputs, ForwardMode.TARGET_VERIFY, inputs.query_lengths[0])
