"""Latent attention of vllm-ascend: ``AscendMLAImpl`` in prefill, in chunks behind a prefix, decode and verification."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm_ascend.attention import mla_v1
from vllm_ascend.compilation import acl_graph

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
def _pass(context: SimpleNamespace | None = None) -> Iterator[None]:
    """Be inside a forward pass, which captures nothing where nothing is said."""
    context = context or SimpleNamespace(capturing=False, is_draft_model=False, is_draft_model_prefill=False)
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
    drafts = options_of(inputs)[SPECULATIVE] == "1"
    attention = _decoder(inputs, drafts=drafts)
    batch = _decode(inputs, drafts=drafts)
    with _pass():
        output = attention._forward_decode(
            inputs.query, inputs.query_rope, inputs.pool.key, inputs.pool.value, PAGE, batch
        )
    brought: torch.Tensor = output.view(inputs.query.shape)
    return brought


def _decoder(inputs: LatentAttentionInputs, *, drafts: bool) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the attention of a layer whose latents are brought up by the identity."""
    _, heads, rank = inputs.query.shape
    identity = torch.eye(rank, dtype=inputs.query.dtype, device=inputs.query.device).expand(heads, -1, -1)
    return _attention(
        inputs,
        enable_kv_nz=options_of(inputs)[KV_NZ] == "1",
        speculative_config=SimpleNamespace() if drafts else None,
        W_UV=identity.contiguous(),
    )


def _decode(
    inputs: LatentAttentionInputs,
    *,
    drafts: bool,
    table: torch.Tensor | None = None,
    lengths: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> SimpleNamespace:
    """Return metadata of a batch that decodes, or verifies drafts: those of the case, or others of a graph."""
    state = mla_v1.AscendAttentionState
    return SimpleNamespace(
        attn_state=state.SpecDecoding if drafts else state.DecodeOnly,
        decode=SimpleNamespace(
            block_table=inputs.pool.block_table if table is None else table,
            seq_lens_list=list(inputs.kv_lengths if lengths is None else lengths),
            actual_seq_lengths_q=list(accumulate(inputs.query_lengths if rows is None else rows)),
            attn_mask=compressed_mask(str(inputs.query.device)),
        ),
    )


METHOD = "draft_method"
"""How tokens are drafted: by a model, as MTP and EAGLE do, or by looking them up (ngram)."""


class _Speculation:
    """What an update of graphs asks of the configuration of drafts."""

    disable_padded_drafter_batch = False

    def __init__(self, tokens: int, method: str) -> None:
        self.num_speculative_tokens, self._method = tokens, method

    def use_eagle(self) -> bool:
        """Whether a model drafts."""
        return self._method == "eagle"


def _replayed(inputs: LatentAttentionInputs, *, drafts: bool) -> torch.Tensor:
    """Capture a layer over padded requests, replay it with the case's, and update it as the runner does."""
    width, requests = inputs.query_lengths[0], len(inputs.kv_lengths)
    bucket = 1 << requests.bit_length()  # one request of padding at least
    tokens, query = bucket * width, inputs.query
    states = [part.new_zeros(tokens, *part.shape[1:]) for part in (query, inputs.query_rope)]
    table = inputs.pool.block_table.new_zeros(bucket, inputs.pool.block_table.shape[1])
    attention = _decoder(inputs, drafts=drafts)
    npu: Any = torch.get_device_module("npu")
    context = SimpleNamespace(capturing=True, is_draft_model=False, is_draft_model_prefill=False)
    speculation = _Speculation(width - 1, options_of(inputs)[METHOD]) if drafts else None
    with _pass(context), mock.patch.object(acl_graph, "_graph_params", None):
        acl_graph.set_graph_params([tokens])
        graph = npu.NPUGraph()
        before = _decode(inputs, drafts=drafts, table=table, lengths=[width] * bucket, rows=[width] * bucket)
        with npu.graph(graph):
            output = attention._forward_decode(*states, inputs.pool.key, inputs.pool.value, PAGE, before)
        context.capturing = False
        for buffer, part in zip(states, (query, inputs.query_rope), strict=True):
            buffer[: len(part)].copy_(part)
        table[:requests].copy_(inputs.pool.block_table)
        forward = SimpleNamespace(attn_metadata={"layer": _decode(inputs, drafts=drafts, table=table)})
        updates = npu.Stream()
        graph.replay()
        try:
            mla_v1.AscendMLAImpl.update_graph_params(updates, forward, tokens, None, speculation)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # of an update that was not begun
                npu.graph_task_update_end(updates)
            free = npu.Stream()
            for event in acl_graph.get_graph_params().events[tokens]:  # or the replay would wait for ever
                event.record(free)
            raise
        finally:
            npu.synchronize()
    answer: torch.Tensor = output.view(tokens, *query.shape[1:])[: len(query)]
    return answer


@implementation(
    "latent_attention",
    name="_forward_decode_graph",
    supports=[{**_ABSORBED, **order} for order in _ORDERS],
    options={KV_NZ: ("0", "1"), SPECULATIVE: ("0",)},
    on_device=True,
)
def forward_decode_graph(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendMLAImpl._forward_decode captured and replayed, with lengths that ``update_graph_params`` hands over."""
    return _replayed(inputs, drafts=False)


@implementation(
    "latent_attention",
    name="_forward_decode_of_drafts_graph",
    supports=[
        {**_DRAFTS, **order, "query_length": range(2, 17), "ragged": (False,)} for order in _ORDERS
    ],
    options={KV_NZ: ("0", "1"), SPECULATIVE: ("1",), METHOD: ("eagle", "ngram")},
    on_device=True,
)  # fmt: skip
def forward_decode_of_drafts_graph(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """The same where drafts are verified, as many of each request."""
    return _replayed(inputs, drafts=True)


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
