"""Context parallelism of vllm-ascend: decode over shards of a cache, drafts with its masks, and vllm's prefill chunks.

Its own functions compute where new tokens go, how many keys a rank has, what each draft sees of them, which rows of a
prefill a rank has, and the merge. Groups of ranks are vllm's, without its engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
from vllm.v1.worker.gpu import pcp_manager
from vllm_ascend.attention.context_parallel import attention_cp
from vllm_ascend.attention.context_parallel.common_cp import get_dcp_local_seq_lens
from vllm_ascend.device.device_op import BaseDeviceAdaptor
from vllm_ascend.worker import block_table, dcp_utils

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import compressed_mask
from npudiff.device.backends.vllm_ascend.world import patched
from npudiff.model.constraints import Box
from npudiff.reference.context_parallel import ContextParallelPart

_PAGES: Box = {
    "page_size": range(16, 1025, 16), "head_dim": (64, 128), "padded": (0,),
    "rows": ("contiguous",),
}  # fmt: skip
_DECODE: Box = {**_PAGES, "stage": ("decode",), "dtype": ("bfloat16",)}
_PREFILL: Box = {**_PAGES, "stage": ("prefill",), "dtype": ("bfloat16",)}
"""What pads a batch has rows of which a merge makes NaN, and which nobody reads."""


def _without_init(kind: type, **attributes: object) -> Any:  # noqa: ANN401 - an object of vllm's
    made: Any = object.__new__(kind)
    vars(made).update(attributes)
    return made


def _group(ranks: int, rank: int) -> Any:  # noqa: ANN401 - vllm's
    """Return vllm's communicator of all ranks, as its groups have it."""
    return _without_init(DeviceCommunicatorBase, world_size=ranks, rank_in_group=rank, device_group=dist.group.WORLD)


def _slots(inputs: ContextParallelPart) -> torch.Tensor:
    """Where new tokens go, by ``BlockTable._compute_dcp_slot_mapping``."""
    positions = torch.cat([
        torch.arange(total - new, total)
        for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)
    ])  # fmt: skip
    requests = torch.repeat_interleave(torch.arange(len(inputs.kv_lengths)), torch.tensor(inputs.query_lengths))
    device = inputs.query.device
    slots = torch.zeros(len(positions), dtype=torch.int32, device=device)
    tables = _without_init(
        block_table.BlockTable,
        block_size=inputs.page_size,
        physical_block_size=inputs.page_size,
        blocks_per_phys_block=1,
        max_num_blocks_per_req=inputs.block_table.shape[1],
        dcp_world_size=inputs.ranks,
        dcp_rank=inputs.rank,
        cp_kv_cache_interleave_size=inputs.interleave,
        block_table=SimpleNamespace(cpu=inputs.block_table, gpu=inputs.block_table),
        slot_mapping=SimpleNamespace(cpu=slots, gpu=slots),
    )
    tables._compute_dcp_slot_mapping(requests.to(device), positions.to(device))
    return slots


def _written(inputs: ContextParallelPart, slots: torch.Tensor) -> None:
    BaseDeviceAdaptor.reshape_and_cache(inputs.key, inputs.value, inputs.key_cache, inputs.value_cache, slots)


@contextmanager
def _pass() -> Iterator[None]:
    """Be inside a forward pass that captures nothing, and moves nothing to another machine meanwhile."""
    context = SimpleNamespace(capturing=False, is_draft_model=False)
    with (
        mock.patch.object(attention_cp, "_EXTRA_CTX", context),
        mock.patch.object(attention_cp, "get_graph_params", return_value=None),
        patched(attention_cp, {"record_attention_compute_start": lambda: None}),
    ):
        yield


def _attention(inputs: ContextParallelPart, speculative: object = None) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the attention of a layer, of this rank."""
    return _without_init(
        attention_cp.AscendAttentionDCPImpl,
        key_cache=inputs.key_cache,
        value_cache=inputs.value_cache,
        num_heads=inputs.query.shape[1],
        num_kv_heads=inputs.key.shape[1],
        head_size=inputs.query.shape[2],
        scale=inputs.scale,
        vllm_config=SimpleNamespace(speculative_config=speculative),
        dcp_size=inputs.ranks,
        dcp_rank=inputs.rank,
        dcp_group=_group(inputs.ranks, inputs.rank),
        dcp_device_group=dist.group.WORLD if inputs.ranks > 1 else None,
    )


def _lengths(inputs: ContextParallelPart, totals: Sequence[int]) -> torch.Tensor:
    """Tokens of each request on each rank, of so many first ones."""
    found: torch.Tensor = get_dcp_local_seq_lens(torch.tensor(totals), inputs.ranks, inputs.interleave)
    return found


def _decoded(inputs: ContextParallelPart, speculative: object, mask: torch.Tensor | None) -> torch.Tensor:
    """Run ``AscendAttentionDCPImpl._forward_decode_dcp`` on the new tokens, and return the output of this rank."""
    _written(inputs, _slots(inputs))
    lengths = _lengths(inputs, inputs.kv_lengths)
    batch = SimpleNamespace(
        num_decodes=len(inputs.kv_lengths),
        actual_seq_lengths_q=list(itertools.accumulate(inputs.query_lengths)),
        block_tables=inputs.block_table,
        decode_meta=SimpleNamespace(
            num_computed_tokens_of_dcp=lengths.numpy(), block_tables=inputs.block_table, dcp_mtp_attn_mask=mask
        ),
    )
    with _pass():
        output: torch.Tensor = _attention(inputs, speculative)._forward_decode_dcp(inputs.query, batch)
    return output.to(inputs.query.dtype)


@implementation(
    "context_parallel", name="AscendAttentionDCPImpl._forward_decode_dcp",
    supports={**_DECODE, "query_length": (1,)}, on_device=True,
)  # fmt: skip
def forward_decode(inputs: ContextParallelPart, target: Target) -> torch.Tensor:
    """AscendAttentionDCPImpl._forward_decode_dcp of one token each, with vllm-ascend's slots, lengths and merge."""
    return _decoded(inputs.to(target.device), None, None)


@implementation(
    "context_parallel", name="AscendAttentionDCPImpl._forward_decode_dcp_of_drafts",
    supports={**_DECODE, "ragged": (False,), "query_length": range(2, 17)}, on_device=True,
)  # fmt: skip
def forward_drafts(inputs: ContextParallelPart, target: Target) -> torch.Tensor:
    """The same of drafts, with the masks of DCPManager.generate_mtp_attention_mask_for_decode."""
    inputs = inputs.to(target.device)
    new, batch = inputs.query_lengths[0], len(inputs.kv_lengths)
    width = inputs.block_table.shape[1] * inputs.page_size
    manager = _without_init(
        dcp_utils.DCPManager,
        num_decode_reqs=batch,
        dcp_world_size=inputs.ranks,
        dcp_world_rank=inputs.rank,
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(cp_kv_cache_interleave_size=inputs.interleave)),
        dcp_mtp_attn_mask=SimpleNamespace(cpu=torch.zeros(batch, new, width, dtype=torch.bool)),
    )
    histories = [total - rows for rows, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)]
    mask = manager.generate_mtp_attention_mask_for_decode(
        histories, torch.tensor(inputs.query_lengths, dtype=torch.int32).numpy()
    )
    return _decoded(inputs, SimpleNamespace(), mask.to(target.device))


@implementation(
    "context_parallel", name="AscendAttentionDCPImpl.forward_impl", on_device=True,
    supports={**_DECODE, "kv_heads": (1,), "query_length": range(1, 2**16)},
)  # fmt: skip
def forward_chunk(inputs: ContextParallelPart, target: Target) -> torch.Tensor:
    """AscendAttentionDCPImpl.forward_impl of prompts behind histories, with metadata of its own builder.

    New tokens see each other as they were handed over, and histories as they lie on ranks.
    """
    inputs = inputs.to(target.device)
    new = torch.tensor(inputs.query_lengths, dtype=torch.int32)
    totals = torch.tensor(inputs.kv_lengths, dtype=torch.int32)
    builder = _without_init(
        attention_cp.AscendAttentionDCPMetadataBuilder,
        dcp_size=inputs.ranks,
        dcp_rank=inputs.rank,
        device=inputs.query.device,
        chunked_prefill_enabled=True,
    )
    histories = _lengths(inputs, (totals - new).tolist()).numpy()
    made = builder._build_backend_metadata(
        SimpleNamespace(context_parallel_metadata=SimpleNamespace(num_computed_tokens_of_dcp=histories)),
        block_table=inputs.block_table, query_lens=new, seq_lens=totals, num_decodes=0, num_prefills=len(new),
    )  # fmt: skip
    batch = _without_init(
        attention_cp.AscendAttentionDCPMetadata,
        num_decodes=0,
        num_prefills=len(new),
        num_decode_tokens=0,
        num_actual_tokens=len(inputs.query),
        attn_mask=compressed_mask(str(inputs.query.device)),
        **made,
    )
    output = torch.full_like(inputs.query, 777.0)
    caches = inputs.key_cache, inputs.value_cache
    with _pass():
        _attention(inputs).forward_impl(inputs.query, inputs.key, inputs.value, caches, batch, output)
    return output


@implementation("context_parallel", name="PCPManager", supports=_PREFILL, on_device=True)
def prefill(inputs: ContextParallelPart, target: Target) -> torch.Tensor:
    """PCPManager's chunks, slots of gathered keys and order of rows, with FIA as vllm-ascend calls it on segments.

    vllm-ascend derives its manager from vllm's, which is this one.
    """
    inputs = inputs.to(target.device)
    starts = torch.tensor([0, *itertools.accumulate(inputs.query_lengths)]).numpy()
    new = torch.tensor(inputs.query_lengths, dtype=torch.int32).numpy()
    computed = torch.tensor(inputs.kv_lengths, dtype=torch.int32).numpy() - new
    manager = pcp_manager.PCPManager(inputs.ranks, inputs.rank, torch.device("cpu"))
    by_rank, counts = manager._build_batch_layout(new, computed, torch.ones(len(new), dtype=torch.bool).numpy(), starts)
    segments, rows = by_rank[inputs.rank], max(counts)
    group = _group(inputs.ranks, inputs.rank)
    local = manager._padded_gather_idx[inputs.rank * rows : (inputs.rank + 1) * rows].to(inputs.query.device)
    query, key, value = (states.index_select(0, local) for states in (inputs.query, inputs.key, inputs.value))
    slots = manager._convert_to_gathered_slot_mappings(_all_slots(inputs).cpu().long().unsqueeze(0))[0]
    BaseDeviceAdaptor.reshape_and_cache(
        group.all_gather(key.contiguous(), 0), group.all_gather(value.contiguous(), 0), inputs.key_cache,
        inputs.value_cache, slots.to(inputs.query.device, torch.int32),
    )  # fmt: skip
    output = torch.zeros_like(query)
    if segments:
        of = [segment.global_batch_req_idx for segment in segments]
        ends = [
            segment.global_batch_slice.stop - int(starts[place]) for segment, place in zip(segments, of, strict=True)
        ]
        real = sum(segment.num_tokens for segment in segments)
        output[:real], _ = torch.ops.npu.npu_fused_infer_attention_score(
            query[:real].contiguous(),
            inputs.key_cache.flatten(2),
            inputs.value_cache.flatten(2),
            num_heads=query.shape[1],
            num_key_value_heads=key.shape[1],
            input_layout="TND",
            atten_mask=compressed_mask(str(query.device)),
            sparse_mode=3,
            scale=inputs.scale,
            block_table=inputs.block_table[of].contiguous(),
            block_size=inputs.page_size,
            actual_seq_lengths=list(itertools.accumulate(segment.num_tokens for segment in segments)),
            actual_seq_lengths_kv=[int(computed[place]) + end for place, end in zip(of, ends, strict=True)],
        )
    with mock.patch.object(pcp_manager, "get_pcp_group", return_value=group):
        restored: torch.Tensor = manager.restore_hidden_states(output.contiguous())
    return restored


def _all_slots(inputs: ContextParallelPart) -> torch.Tensor:
    """Where all new tokens go in a cache that has all of them, int64 ``[tokens]``."""
    found = []
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        token = torch.arange(total - new, total, device=inputs.query.device)
        page = inputs.block_table[request].long()[token // inputs.page_size]
        found.append(page * inputs.page_size + token % inputs.page_size)
    return torch.cat(found)
