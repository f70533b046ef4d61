"""Latent attention of vllm-ascend: ``AscendMLAImpl`` in prefill, in chunks behind a prefix, decode and verification."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from vllm_ascend.attention import mla_v1

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import compressed_mask
from npudiff.device.ascend.latent_attention import ExpandedCall, rounded
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.latent_world import latent_attention
from npudiff.device.backends.vllm_ascend.world import options_of, patched
from npudiff.model.constraints import Box
from npudiff.reference.latent_attention import LatentAttentionInputs

KV_NZ = "enable_kv_nz"
SPECULATIVE = "speculative"
"""Whether the engine drafts tokens: its decodes of one row then go to the operator as drafts do."""

CHUNK = "workspace_pages"
"""Pages of a prefix that its workspace holds for each request; vllm's has thousands of tokens, and the same seams."""

_PAGES: Box = {
    "page_size": (PAGE,), "rows": ("contiguous",), "poison": ("large",), "fully_masked_rows": ("none",),
    "rank": (512,), "rope_dim": (64,), "heads": range(1, 129), "padded_rows": (0,),
}  # fmt: skip
_ORDERS: tuple[Box, ...] = ({KV_NZ: ("0",), "layout": ("PA_BSND",)}, {KV_NZ: ("1",), "layout": ("PA_NZ",)})
_ABSORBED: Box = {**_PAGES, "form": ("absorbed",), SPECULATIVE: ("0",), "query_length": (1,)}
_DRAFTS: Box = {**_ABSORBED, SPECULATIVE: ("1",), "query_length": range(1, 17), "dtype": ("bfloat16",)}
_EXPANDED: Box = {
    **_PAGES, "form": ("expanded",), "nope_dim": (128,), "value_dim": (128,), "merges": (1,), "dtype": ("bfloat16",),
    "query_length": range(1, 2**20), "kv_length": range(1, 14 * PAGE), "layout": ("PA_BSND",),
}  # fmt: skip
"""Prefill of float16 is computed in bfloat16, on purpose. Pages that lie in NZ are of engines that decode only."""


@contextlib.contextmanager
def _pass() -> Iterator[None]:
    """Be inside a forward pass that captures nothing."""
    context = SimpleNamespace(capturing=False, is_draft_model=False, is_draft_model_prefill=False)
    values = {"_EXTRA_CTX": context, "record_attention_compute_start": lambda: None}
    with patched(mla_v1, values):
        yield


def _attention(inputs: LatentAttentionInputs, **attributes: object) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the attention of a layer of the model of a case."""
    heads = inputs.query.shape[1]
    padded = 1 << (heads - 1).bit_length()
    return latent_attention(
        num_heads=heads,
        num_heads_padded=padded,
        head_padding=padded - heads,
        scale=inputs.scale,
        kv_lora_rank=inputs.rank,
        qk_rope_head_dim=inputs.rope_dim,
        v_head_dim=inputs.value_dim,
        **attributes,
    )


@implementation(
    "latent_attention",
    name="_forward_decode",
    supports=[{**box, **order} for box in (_ABSORBED, _DRAFTS) for order in _ORDERS],
    options={KV_NZ: ("0", "1"), SPECULATIVE: ("0", "1")},
    on_device=True,
)
def forward_decode(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendMLAImpl._forward_decode over latents, of rows and of drafts; latents are brought up by the identity."""
    said, (tokens, heads, rank) = options_of(inputs), inputs.query.shape
    identity = torch.eye(rank, dtype=inputs.query.dtype, device=inputs.query.device).expand(heads, -1, -1)
    drafts = said[SPECULATIVE] == "1"
    attention = _attention(
        inputs,
        enable_kv_nz=said[KV_NZ] == "1",
        speculative_config=SimpleNamespace() if drafts else None,
        W_UV=identity.contiguous(),
    )
    batch = SimpleNamespace(
        attn_state=mla_v1.AscendAttentionState.SpecDecoding if drafts else mla_v1.AscendAttentionState.DecodeOnly,
        decode=SimpleNamespace(
            block_table=inputs.pool.block_table,
            seq_lens_list=list(inputs.kv_lengths),
            actual_seq_lengths_q=list(accumulate(inputs.query_lengths)),
            attn_mask=compressed_mask(str(inputs.query.device)),
        ),
    )
    with _pass():
        output = attention._forward_decode(
            inputs.query, inputs.query_rope, inputs.pool.key, inputs.pool.value, PAGE, batch
        )
    brought: torch.Tensor = output.view(tokens, heads, rank)
    return brought


def _prefill(inputs: LatentAttentionInputs) -> SimpleNamespace:
    """Metadata of a batch that prefills, with the chunks of prefixes that vllm-ascend's builder makes."""
    query, total = (torch.tensor(lengths, dtype=torch.int32) for lengths in (inputs.query_lengths, inputs.kv_lengths))
    device, requests = inputs.query.device, len(total)
    with_prefix = int((total > query).sum())
    builder = SimpleNamespace(
        chunked_prefill_enabled=True,
        seq_lens=total,
        query_lens=query,
        num_decodes=0,
        num_prefills=requests,
        block_size=PAGE,
        chunked_prefill_workspace_size=int(options_of(inputs)[CHUNK]) * PAGE * max(1, with_prefix),
        chunked_prefill_workspace=None,
        device=device,
    )
    common = SimpleNamespace(num_reqs=requests)
    return SimpleNamespace(
        attn_mask=compressed_mask(str(device)),
        block_table=inputs.pool.block_table,
        actual_seq_lengths_q=list(accumulate(inputs.query_lengths)),
        chunked_context=mla_v1.AscendMLAMetadataBuilder.build_chunked_metadata(builder, 0, common),
    )


@implementation(
    "latent_attention", name="_forward_prefill", supports=_EXPANDED, options={CHUNK: ("1", "8")}, on_device=True
)
def forward_prefill(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendMLAImpl._forward_prefill of heads, merged with chunks of prefixes that it loads and projects."""
    call, up = ExpandedCall(inputs, target), inputs.up
    assert up is not None  # noqa: S101 - the form of the cases
    latents, ropes = call.gathered(call.prefixes, list(inputs.query_lengths))
    keys, values = call.expanded(latents)
    both = torch.cat([up.key, up.value.transpose(1, 2)], dim=1).flatten(0, 1)
    attention = _attention(
        inputs,
        qk_nope_head_dim=inputs.query.shape[2],
        kv_b_proj=lambda rows: (rounded(rows, both.t()), None),
    )
    rotated = ropes.unsqueeze(1).expand(-1, inputs.query.shape[1], -1)
    caches = inputs.pool.key, inputs.pool.value
    with _pass():
        output = attention._forward_prefill(
            inputs.query, inputs.query_rope, keys, rotated, values, caches, SimpleNamespace(prefill=_prefill(inputs))
        )
    answer = inputs.query.new_empty(len(keys), inputs.query.shape[1] * inputs.value_dim)
    answer[:] = output  # as ``forward`` puts it before the last projection, whose rows have the model's dtype
    return answer.view(len(keys), -1, inputs.value_dim)
