"""Where the keys and values of one sequence come from, a tile at a time.

Token ``t`` of sequence ``b`` is row ``t % block_size`` of block ``block_table[b, t // block_size]``. Caches
are [blocks, block size, kv heads * dim], [blocks, kv heads, block size, dim], or in NZ order
[blocks, kv heads, dim / C0, block size, C0], where element ``d`` of a token is in tile ``d // C0`` at
``d % C0``. The rotated part of the keys is a cache of its own, with the same blocks. Sources: DOC of
``npu_fused_infer_attention_score``, page attention; ACLNN for NZ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from npudiff.device.simulator.errors import DeviceFault
from npudiff.device.simulator.fused_attention.layouts import rows

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Span
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest


class KeyValues(Protocol):
    """The keys and values of one sequence."""

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [kv heads, stop - start, dim] of the tokens in a range, nothing else."""


@dataclass(frozen=True)
class ContiguousKeyValues:
    """Keys, in one part or two, and values that lie one after the other: views [kv heads, tokens, dim]."""

    keys: tuple[Tensor, ...]
    values: Tensor

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the tokens ``start`` to ``stop``."""
        return joined([part[:, start:stop] for part in self.keys]), self.values[:, start:stop]


@dataclass(frozen=True)
class PagedKeyValues:
    """Keys and values in blocks of a cache."""

    operator: str
    """For messages."""
    batch: int
    """Row of the block table."""
    blocks: list[int]
    """That row."""
    key_caches: tuple[Tensor, ...]
    value_cache: Tensor
    """The caches; that of the keys in one part or two."""
    block_size: int
    kv_heads: int
    """Sizes of the caches' axes."""

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the tokens ``start`` to ``stop``; only their blocks are touched.

        Raises
        ------
        DeviceFault
            A block id is not in the cache. The operator does not validate ids: hardware reads foreign memory.
        """
        first, last = start // self.block_size, (stop - 1) // self.block_size
        ids = self.blocks[first : last + 1]
        count = self.value_cache.shape[0]
        if min(ids) < 0 or max(ids) >= count:
            position, block = next((p, b) for p, b in enumerate(ids, first) if not 0 <= b < count)
            where = f"{self.operator}: block_table[{self.batch}, {position}]"
            raise DeviceFault(f"{where} is {block}, and the cache has {count} blocks")
        index = torch.tensor(ids)
        offset = start - first * self.block_size
        window = slice(offset, offset + stop - start)
        keys = joined([self._gather(cache, index, window) for cache in self.key_caches])
        return keys, self._gather(self.value_cache, index, window)

    def _gather(self, cache: Tensor, index: Tensor, window: slice) -> Tensor:
        """Return the tokens of some blocks that are in a window, counted from the first of them."""
        blocks = cache.index_select(0, index)
        if cache.dim() == 5:
            if len(index) == 1:
                # What is not wanted is left out before tiles are put together, which copies.
                blocks, window = blocks[..., window, :], slice(None)
            return blocks.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)[:, window]
        if cache.dim() == 4:
            return blocks.transpose(0, 1).flatten(1, 2)[:, window]
        return blocks.reshape(-1, self.kv_heads, blocks.shape[-1] // self.kv_heads).transpose(0, 1)[:, window]


def joined(parts: list[Tensor]) -> Tensor:
    """Put the plain and the rotated part of some heads side by side: [heads, tokens, dim]."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def key_values(request: FusedAttentionRequest, span: Span) -> KeyValues:
    """Return the source of one sequence's keys and values."""
    keys = (request.key,) if request.key_rope is None else (request.key, request.key_rope)
    if request.block_table is None:
        window = range(span.key_start, span.key_start + span.key_length)
        where = (request.axes, request.kv_heads, span.batch, window)
        return ContiguousKeyValues(tuple(rows(part, *where) for part in keys), rows(request.value, *where))
    return PagedKeyValues(
        operator=request.check.operator,
        batch=span.batch,
        blocks=request.block_table[span.batch].tolist(),
        key_caches=keys,
        value_cache=request.value,
        block_size=request.block_size,
        kv_heads=request.kv_heads,
    )
