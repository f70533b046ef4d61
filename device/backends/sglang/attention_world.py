"""The world of one attention call of sglang: pools, the table of requests, the backend, a layer and a batch.

All of them are sglang's own classes. The pages of a case lie in the pool as they do in the case; where a model is
hybrid, each token has a slot of the full pool of its own, from which the mapping leads to the slot of the sliding pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt import runtime_context
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.hardware_backend.npu.attention.ascend_backend import AscendAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, ReqToTokenPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.speculative.eagle_info import EagleVerifyInput

from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.pool_world import DEVICE, buffers, fill, mha_pool, swa_pool
from npudiff.device.backends.sglang.world import environment, flags_of
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

STRIP = 16
"""Columns of a strip of a page in NZ."""

_NO_SPECULATION = SimpleNamespace(
    is_dspark=lambda: False,
    is_dflash=lambda: False,
    is_dflash_family=lambda: False,
    get_num_tokens_per_req_for_target_verify=lambda count, **_: count,
)


@dataclass(frozen=True)
class AttentionWorld:
    """What a forward pass of one layer needs."""

    backend: AscendAttnBackend
    layer: RadixAttention
    batch: ForwardBatch
    inputs: SlidingAttentionInputs
    model: Model

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``forward_extend`` and ``forward_decode``; keys and values are in the pool already."""
        query, pool = self.inputs.query, self.inputs.kv
        rows = query.shape[0]
        empty = {name: query.new_zeros(rows, pool.kv_heads, dim) for name, dim in _dims(pool).items()}
        sinks = {} if self.inputs.sinks is None else {"sinks": self.inputs.sinks}
        return {
            "q": query.reshape(rows, -1),
            **empty,
            "layer": self.layer,
            "forward_batch": self.batch,
            "save_kv_cache": False,
            **sinks,
        }

    @property
    def algorithm(self) -> Any:  # noqa: ANN401 - what sglang's enumeration answers
        """How drafts are made: not in a way that attention has to know."""
        return no_speculation()

    @property
    def new_slots(self) -> torch.Tensor:
        """Slots of the new tokens in the pool of the layer, int64, those of padding left out."""
        slots: torch.Tensor = self.batch.out_cache_loc[: sum(self.inputs.query_lengths)]
        pool = self.backend.token_to_kv_pool
        if self.inputs.window is None or not isinstance(pool, SWAKVPool):
            return slots
        own: torch.Tensor = pool.translate_loc_from_full_to_swa(slots)
        return own

    def taken_out(self, poison: float, slots: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return keys and values of new tokens, or of some slots, and put poison into the pool where they were."""
        slots = self.new_slots if slots is None else slots
        both = zip(("k", "v"), buffers(self.backend.token_to_kv_pool, self.layer.layer_id), strict=True)
        return {name: taken_out(cache, slots, poison) for name, cache in both}

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put keys and values of earlier passes into slots of the full pool, or where those are mapped to."""
        pool = self.backend.token_to_kv_pool
        sliding = pool.translate_loc_from_full_to_swa(slots) if isinstance(pool, SWAKVPool) else None
        pool.set_kv_buffer(self.layer, KVWriteLoc(slots, sliding), key, value)


def no_speculation() -> Any:  # noqa: ANN401 - what sglang's enumeration answers
    """Return an algorithm of drafts of which attention does not have to know."""
    return _NO_SPECULATION


def taken_out(cache: torch.Tensor, slots: torch.Tensor, poison: float, *, strips: bool = False) -> torch.Tensor:
    """Return rows of a buffer of a pool, ``[tokens, heads, dim]``, and put poison in their place.

    Parameters
    ----------
    cache : torch.Tensor
        ``[..., heads, dim]``, or pages of one head whose bytes lie in strips of 16 columns.
    slots : torch.Tensor
        int64 ``[tokens]``.
    poison : float
        What is left there.
    strips : bool
        Whether pages are in NZ.
    """
    if not strips:
        rows = cache.view(-1, *cache.shape[-2:])
        new = rows[slots]
        rows[slots] = poison
        return new
    dim = cache.shape[-1]
    tiles, page, place = cache.view(-1, dim // STRIP, PAGE, STRIP), slots // PAGE, slots % PAGE
    new = tiles[page, :, place].reshape(-1, 1, dim)
    tiles[page, :, place] = poison
    return new


def _dims(pool: PagedKV) -> dict[str, int]:
    return {"k": pool.head_dim, "v": pool.value_head_dim}


def attention_world(
    inputs: SlidingAttentionInputs, mode: ForwardMode, window_size: int, *, drafts: int | None = None,
    chunk: int | None = None,
) -> AttentionWorld:  # fmt: skip
    """Build the world of a case.

    Parameters
    ----------
    inputs : SlidingAttentionInputs
        On the device; pages of 128 tokens that lie as ``PA_BSND``.
    mode : ForwardMode
        What sglang does: extend, decode, target verify.
    window_size : int
        What the layer is told as its ``sliding_window_size``; -1 for none.
    drafts : int, optional
        Draft tokens of each request, where they are verified.
    chunk : int, optional
        Positions of a chunk, of a model whose layers see chunks; this one does.
    """
    sliding = None if inputs.sliding is None else inputs.window or PAGE
    model = Model(inputs.query.dtype, inputs.query.shape[1], sliding, chunk=chunk)
    with environment(flags_of(inputs)):
        pool, mapping = _pools(inputs)
        requests = _requests(inputs, mapping)
        backend = attention_backend(pool, requests, model, drafts=drafts)
    layer = RadixAttention(
        inputs.query.shape[1], inputs.kv.head_dim, inputs.scale, inputs.kv.kv_heads, 0 if mapping is None else 1,
        v_head_dim=inputs.kv.value_head_dim, sliding_window_size=window_size,
    )  # fmt: skip
    layer.sliding_window_size, layer.use_irope = window_size, chunk is not None
    if mapping is not None and inputs.window is None:
        layer.layer_id = 0
    padding = inputs.query.shape[0] - sum(inputs.query_lengths)
    lengths = inputs.query_lengths, inputs.kv_lengths
    batch = forward_batch(mode, requests, *lengths, padding=padding, drafts=drafts)
    return AttentionWorld(backend, layer, batch, inputs, model)


def _pools(inputs: SlidingAttentionInputs) -> tuple[Any, torch.Tensor | None]:
    """Return the pool that holds the pages of a case, and the slots of the sliding pool by those of the full one."""
    full, sliding = inputs.full, inputs.sliding
    if sliding is None:
        pool = mha_pool(full.key, full.value)
        fill(pool, 0, full.key, full.value)
        return pool, None
    width = max(full.block_table.shape[1], sliding.block_table.shape[1])
    slots = max(full.key.shape[0] - 1, full.block_table.shape[0] * width) * PAGE
    pool = swa_pool((full.key, full.value), slots=slots, sliding_slots=(len(sliding.key) - 1) * PAGE, page_size=PAGE)
    fill(pool, 0, full.key, full.value)
    fill(pool, 1, sliding.key, sliding.value)
    mapping = torch.zeros(slots + PAGE + 1, dtype=torch.int64, device=DEVICE)
    mapping[-1] = -1
    pool.register_mapping(mapping)
    return pool, mapping


def _slots(table: torch.Tensor, length: int) -> torch.Tensor:
    """Return the slots of the first tokens of all requests, int64 ``[batch, length]``."""
    tokens = torch.arange(length, device=table.device)
    return table.long()[:, tokens // PAGE] * PAGE + tokens % PAGE


def _requests(inputs: SlidingAttentionInputs, mapping: torch.Tensor | None) -> ReqToTokenPool:
    """Return the table of requests, and let the mapping lead to the slots of a sliding layer that reads it."""
    batch, length = len(inputs.kv_lengths), max((*inputs.kv_lengths, 1))
    pool = ReqToTokenPool(batch, length + PAGE, DEVICE, False)
    if mapping is not None and inputs.window is not None and inputs.sliding is not None:
        width = -(-length // PAGE)
        own = torch.arange(batch * width, device=DEVICE, dtype=torch.int32).view(batch, width)
        slots = _slots(own + 1, length)
        mapping[slots] = _slots(inputs.sliding.block_table, length)
    else:
        slots = _slots(inputs.full.block_table, length)
    pool.req_to_token[1 : batch + 1, :length] = slots.to(pool.req_to_token.dtype)
    return pool


@dataclass(frozen=True)
class Model:
    """What the backend's constructor reads of a model, beside its pools."""

    dtype: torch.dtype
    heads: int
    window: int | None = None
    """``sliding_window_size`` of the model, which is hybrid; None where no layer has a pool of its own."""
    page_size: int = PAGE
    latent: Mapping[str, int] | None = None
    """Of a model with MLA, its dims by the names of its configuration."""
    chunk: int | None = None
    """``attention_chunk_size`` of the model."""


def attention_backend(
    pool: Any,  # noqa: ANN401 - sglang's
    requests: ReqToTokenPool,
    model: Model,
    *,
    drafts: int | None = None,
) -> AscendAttnBackend:
    """Build the backend as a model runner does, which is told how many tokens are drafted."""
    context = runtime_context.get_context()
    context.override("npudiff", speculative_num_draft_tokens=drafts)
    try:
        return AscendAttnBackend(model_runner(pool, requests, model))
    finally:
        context.override("npudiff", speculative_num_draft_tokens=None)


def model_runner(pool: Any, requests: ReqToTokenPool, model: Model, *, drafting: bool = False) -> SimpleNamespace:  # noqa: ANN401
    """Return what the backend's constructor reads of the runner of a model, or of a model that drafts."""
    config = SimpleNamespace(
        dtype=model.dtype,
        attention_arch=AttentionArch.MHA if model.latent is None else AttentionArch.MLA,
        hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
        context_len=int(requests.req_to_token.shape[1]),
        num_attention_heads=model.heads,
        **(model.latent or {}),
    )
    return SimpleNamespace(
        device=DEVICE,
        is_draft_worker=drafting,
        attn_cp_size=1,  # read here until 0.5.21
        page_size=model.page_size,
        model_config=config,
        kv_cache_dtype=model.dtype,
        dtype=model.dtype,
        req_to_token_pool=requests,
        token_to_kv_pool=pool,
        token_to_kv_pool_allocator=None,
        use_mla_backend=model.latent is not None,
        spec_algorithm=_NO_SPECULATION,
        is_hybrid_swa=model.window is not None,
        attention_chunk_size=model.chunk,
        sliding_window_size=model.window or PAGE,  # of the model, whose other layers have a window
        server_args=runtime_context.get_context().server_args,
    )


def forward_batch(
    mode: ForwardMode,
    requests: ReqToTokenPool,
    query_lengths: Sequence[int],
    kv_lengths: Sequence[int],
    *,
    padding: int = 0,
    drafts: int | None = None,
    rows: Sequence[int] | None = None,
) -> ForwardBatch:
    """Build the batch of a forward pass whose tokens all have their slots.

    Parameters
    ----------
    mode : ForwardMode
        What sglang does.
    requests : ReqToTokenPool
        The table of requests.
    query_lengths, kv_lengths : sequence of int
        New tokens of each request, and all its tokens.
    padding : int
        Rows behind those of the requests, which are written to slot 0.
    drafts : int, optional
        Draft tokens of each request, which ``seq_lens`` leaves out.
    rows : sequence of int, optional
        Row of each request in the table; 1, 2, ... where nothing is said.
    """
    batch = len(kv_lengths)
    rows = range(1, batch + 1) if rows is None else rows
    lengths = torch.tensor(kv_lengths, dtype=torch.int64) - (drafts or 0)
    new = [
        requests.req_to_token[row, kv - count : kv].long()
        for row, count, kv in zip(rows, query_lengths, kv_lengths, strict=True)
    ]
    tokens = sum(query_lengths) + padding
    wanted: dict[str, Any] = {
        "forward_mode": mode,
        "batch_size": batch,
        "input_ids": torch.zeros(tokens, dtype=torch.int64, device=DEVICE),
        "req_pool_indices": torch.tensor(list(rows), device=DEVICE),
        "seq_lens": lengths.to(DEVICE),
        "seq_lens_cpu": lengths,
        "out_cache_loc": torch.cat([*new, torch.zeros(padding, dtype=torch.int64, device=DEVICE)]),
        "seq_lens_sum": int(lengths.sum()),
    }
    if mode == ForwardMode.EXTEND:
        before = [kv - count for count, kv in zip(query_lengths, kv_lengths, strict=True)]
        wanted |= {
            "extend_num_tokens": sum(query_lengths),
            "extend_seq_lens": torch.tensor(list(query_lengths), dtype=torch.int32, device=DEVICE),
            "extend_prefix_lens": torch.tensor(before, dtype=torch.int32, device=DEVICE),
            "extend_seq_lens_cpu": list(query_lengths),
            "extend_prefix_lens_cpu": before,
        }
    if drafts is not None:
        wanted["spec_info"] = _verification(drafts)
    known = {field.name for field in fields(ForwardBatch)}
    made = ForwardBatch(**{name: value for name, value in wanted.items() if name in known})
    made.global_num_token_non_padded_cpu = sum(query_lengths)
    if drafts is not None:
        made.spec_algorithm = _NO_SPECULATION
    return made


def _verification(drafts: int) -> EagleVerifyInput:
    """Return what attention is told of drafts that follow each other, which is how many they are."""
    unused = dict.fromkeys(field.name for field in fields(EagleVerifyInput) if field.default is MISSING)
    return EagleVerifyInput(**{**unused, "spec_steps": drafts - 1, "topk": 1, "draft_token_num": drafts})
