"""Attention within chunks as backends call it: each chunk of a request that has new tokens is a request of its own.

Fused operators have no such mask. sglang (``layers/attention/local_attention.py`` 225) and vllm
(``model_executor/layers/attention/chunked_local_attention.py``) cut a batch into local requests with the pages of their
chunk, which are causal. Chunks are whole pages there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from npudiff import Target, implementation
from npudiff.device.ascend import sliding_attention
from npudiff.device.ascend.fused_attention import decode_call, tnd_call
from npudiff.model.constraints import Box
from npudiff.reference.chunked_attention import ChunkedAttentionInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

SUPPORTED: Box = {
    "dtype": ("bfloat16",), "page_size": range(16, 1025, 16), "group": range(1, 65), "head_dim": (64, 128),
    "whole_pages": (True,),
}  # fmt: skip
"""What FIA v2 takes, with chunks that have pages of their own."""


class Local(NamedTuple):
    """A part of a request that is in one chunk."""

    request: int
    new: int
    """Rows of it."""
    first: int
    """Position at which the chunk begins."""
    total: int
    """Keys of the chunk, up to its last row."""


class LocalRequests:
    """A batch, cut at the borders of chunks.

    Parameters
    ----------
    inputs : ChunkedAttentionInputs
        On the device.
    """

    def __init__(self, inputs: ChunkedAttentionInputs) -> None:
        self.inputs, self.size = inputs, inputs.kv.page_size
        self.chunk = self.effective_chunk()

    def effective_chunk(self) -> int:
        """Positions of a chunk."""
        return self.inputs.chunk

    def batch(self) -> SlidingAttentionInputs:
        """Return the local requests as a batch without a window."""
        parts = [
            part
            for request, (new, total) in enumerate(zip(self.inputs.query_lengths, self.inputs.kv_lengths, strict=True))
            for part in self.parts(request, new, total)
        ]
        kv = self.inputs.kv
        return SlidingAttentionInputs(
            query=self.inputs.query,
            full=PagedKV(kv.key, kv.value, torch.stack([self.pages(part) for part in parts])),
            sliding=None,
            query_lengths=tuple(part.new for part in parts),
            kv_lengths=tuple(part.total for part in parts),
            window=None,
            scale=self.inputs.scale,
            sinks=None,
        )

    def parts(self, request: int, new: int, total: int) -> list[Local]:
        """Cut one request; it has a part without rows if it has none itself."""
        found: list[Local] = []
        position = total - new
        while position < total or not found:
            first = self.begin(position)
            end = min(total, first + self.chunk)
            found.append(Local(request, end - position, first, self.keys(first, end)))
            position = max(end, position + 1)
        return found

    def begin(self, position: int) -> int:
        """Where the chunk of a position begins."""
        return position // self.chunk * self.chunk

    def keys(self, first: int, end: int) -> int:
        """Keys of a chunk that begins and ends somewhere."""
        return end - first

    def pages(self, part: Local) -> torch.Tensor:
        """Pages of a chunk, as many as a whole one has; columns beyond the table are its last one."""
        table = self.inputs.kv.block_table[part.request]
        columns = self.column(part) + torch.arange(-(-self.chunk // self.size), device=table.device)
        return table[columns.clamp(max=len(table) - 1)]

    def column(self, part: Local) -> int:
        """Column of the table with which a chunk begins."""
        return part.first // self.size


@implementation("chunked_attention", supports=SUPPORTED, on_device=True, graph=True)
def fia_chunked_extend(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Local requests through FIA v2 TND, causal."""
    return extended(LocalRequests(inputs))


def extended(local: LocalRequests) -> torch.Tensor:
    """Run local requests with any number of rows."""
    batch = local.batch()
    return sliding_attention.run_tnd(batch, tnd_call(batch))["output"]


@implementation("chunked_attention", supports={**SUPPORTED, "query_length": (1,)}, on_device=True, graph=True)
def fia_chunked_decode(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """One row of each request through FIA v2 BSND, with the pages and the length of its chunk."""
    batch = LocalRequests(inputs).batch()
    return sliding_attention.run_decode(batch, decode_call(batch))["output"]


@implementation("chunked_attention", on_device=True, graph=True)
def torch_chunked(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Gather the keys of each request and call scaled_dot_product_attention with a mask: chunks of any size."""
    return masked(inputs, 0)


def masked(inputs: ChunkedAttentionInputs, shift: int) -> torch.Tensor:
    """Attend with a mask of chunks; a row counts as so many positions behind its own."""
    pool, start = inputs.kv, 0
    output = inputs.query.new_zeros(*inputs.query.shape[:2], pool.value_head_dim)
    for request, (rows, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        positions = torch.arange(total - rows, total, device=inputs.query.device)
        first = (total - rows) // inputs.chunk * inputs.chunk
        keys = torch.arange(first, total, device=inputs.query.device)
        seen = (keys[None, :] <= positions[:, None]) & (
            keys[None, :] // inputs.chunk == (positions[:, None] + shift) // inputs.chunk
        )
        if rows:
            pages, offsets = pool.block_table[request].long()[keys // pool.page_size], keys % pool.page_size
            query = inputs.query[start : start + rows].transpose(0, 1)
            key, value = (cache[pages, offsets].transpose(0, 1) for cache in (pool.key, pool.value))
            result = torch.nn.functional.scaled_dot_product_attention(
                query[None], key[None], value[None], attn_mask=seen, scale=inputs.scale, enable_gqa=True
            )
            output[start : start + rows] = result[0].transpose(0, 1)
        start += rows
    return output
