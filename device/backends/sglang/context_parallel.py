"""Context parallelism of sglang: zigzag prefill with the Ascend backend's attention, and the merge of its decode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from sglang.srt import runtime_context
from sglang.srt.hardware_backend.npu.attention import ascend_backend
from sglang.srt.layers.cp.zigzag import ZigzagCPStrategy
from sglang.srt.layers.dcp import comm
from sglang.srt.layers.dcp.layout import get_dcp_lens

from npudiff import Target, implementation
from npudiff.device.ascend.context_parallel import Partial, ShardedDecode
from npudiff.device.ascend.fused_attention import compressed_mask
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.context_parallel import ContextParallelPart

_PAGES: Box = {
    "page_size": range(16, 1025, 16), "head_dim": (64, 128), "ranks": range(2, 17), "padded": (0,),
    "rows": ("contiguous",), "dtype": ("bfloat16",),
}  # fmt: skip


_SAME = ("tp", "attn_cp", "moe_tp")
"""Groups of which every rank is: sglang wants their sizes to go together."""


class _Group:
    """The group of all ranks, with the collectives that sglang asks of its own."""

    def __init__(self, ranks: int, rank: int) -> None:
        self.world_size, self.rank_in_group = ranks, rank

    def all_gather_into_tensor(self, output: torch.Tensor, given: torch.Tensor) -> None:
        """Put the tensors of all ranks one after the other."""
        dist.all_gather_into_tensor(output, given.contiguous())

    def all_to_all_single(self, output: torch.Tensor, given: torch.Tensor) -> None:
        """Send the parts of a tensor to the ranks."""
        dist.all_to_all_single(output, given)


@implementation(
    "context_parallel", name="ZigzagCPStrategy", on_device=True,
    supports={**_PAGES, "stage": ("prefill",), "empty_chunks": (False,)},
)  # fmt: skip
def zigzag(inputs: ContextParallelPart, target: Target) -> torch.Tensor:
    """ZigzagCPStrategy with AscendAttnBackend.do_cp_attn_fia; it is for requests of a token for each chunk, or more."""
    inputs = inputs.to(target.device)
    configured()
    strategy, group = ZigzagCPStrategy(inputs.ranks), _Group(inputs.ranks, inputs.rank)
    parallel = runtime_context.get_parallel()
    ranks: dict[str, Any] = {f"{name}_rank": inputs.rank for name in _SAME}
    ranks |= {f"{name}_size": inputs.ranks for name in _SAME} | {"attn_cp_group": group}
    with parallel.override(**ranks):
        new, totals = list(inputs.query_lengths), list(inputs.kv_lengths)
        batch = SimpleNamespace(attn_cp_metadata=strategy.build_metadata(len(inputs.query), totals, new))
        query = strategy.shard_hidden_states(inputs.query, batch)
        both = torch.cat([inputs.key, inputs.value], dim=-1)
        gathered = strategy.gather_kv_cache(strategy.shard_hidden_states(both, batch).contiguous(), batch)
        _write(inputs, *gathered.chunk(2, dim=-1))
        with mock.patch.object(ascend_backend, "get_cp_strategy", return_value=strategy):
            output = _attended(inputs, query, batch)
        restored: torch.Tensor = strategy.gather_hidden_states(output.view(query.shape).contiguous(), batch)
    return restored


def _write(inputs: ContextParallelPart, key: torch.Tensor, value: torch.Tensor) -> None:
    """Put all new tokens into the pool, as sglang's does at slots of its allocator."""
    found = []
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        token = torch.arange(total - new, total, device=key.device)
        page = inputs.block_table[request].long()[token // inputs.page_size]
        found.append(page * inputs.page_size + token % inputs.page_size)
    slots = torch.cat(found)
    for pool, states in ((inputs.key_cache, key), (inputs.value_cache, value)):
        pool.view(-1, *states.shape[1:])[slots] = states


def _attended(inputs: ContextParallelPart, query: torch.Tensor, batch: object) -> torch.Tensor:
    """Attention of the rows of this rank, as ``forward_extend`` asks for it."""
    backend: Any = object.__new__(ascend_backend.AscendAttnBackend)
    device = str(query.device)
    vars(backend).update(
        page_size=inputs.page_size,
        device=device,
        fia_mask=compressed_mask(device),
        forward_metadata=SimpleNamespace(block_tables=inputs.block_table),
    )
    _, heads, dim = query.shape
    kv_heads = inputs.key.shape[1]
    layer = SimpleNamespace(
        tp_q_head_num=heads, tp_k_head_num=kv_heads, tp_v_head_num=kv_heads, qk_head_dim=dim, v_head_dim=dim,
        scaling=inputs.scale,
    )  # fmt: skip
    output: torch.Tensor = backend.do_cp_attn_fia(query, inputs.key_cache, inputs.value_cache, layer, batch)
    return output


class _Merged(ShardedDecode):
    """Lengths and merge of sglang, around attention that knows of one rank."""

    def local_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Ask ``get_dcp_lens``."""
        found: torch.Tensor = get_dcp_lens(lengths, self.ranks, self.rank, interleave_size=self.interleave)
        return found

    def present(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Leave what the operator says: the merge takes plus infinity for nothing."""
        return output, lse

    def merged(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Ask ``cp_lse_ag_out_rs_mla_npu``, which returns no log-sum-exp."""
        return comm.cp_lse_ag_out_rs_mla_npu(output, lse, _Group(self.ranks, self.rank)), lse


@implementation(
    "context_parallel", name="cp_lse_ag_out_rs_mla_npu", supports={**_PAGES, "stage": ("decode",)}, on_device=True,
)  # fmt: skip
def decode(inputs: ContextParallelPart, target: Target) -> torch.Tensor:
    """cp_lse_ag_out_rs_mla_npu and get_dcp_lens, around FIA over the pages of a rank."""
    return _Merged(inputs, target).run()["output"]
