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


class Tokens(Protocol):
    """What every token of one sequence has, for some heads: keys, values, or numbers that belong to them."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return [heads, stop - start, dim] of the tokens in a range, nothing else."""


@dataclass(frozen=True)
class ContiguousTokens:
    """Tokens that lie one after the other: a view [heads, tokens, dim]."""

    tensor: Tensor

    def read(self, start: int, stop: int) -> Tensor:
        """Return the tokens ``start`` to ``stop``."""
        return self.tensor[:, start:stop]


@dataclass(frozen=True)
class PagedTokens:
    """Tokens in blocks of a cache."""

    operator: str
    """For messages."""
    batch: int
    """Row of the block table."""
    blocks: list[int]
    """That row."""
    cache: Tensor
    block_size: int
    kv_heads: int
    """Sizes of the cache's axes."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return the tokens ``start`` to ``stop``; only their blocks are touched.

        Raises
        ------
        DeviceFault
            A block id is not in the cache. The operator does not validate ids: hardware reads foreign memory.
        """
        first, last = start // self.block_size, (stop - 1) // self.block_size
        ids = self.blocks[first : last + 1]
        count = self.cache.shape[0]
        if min(ids) < 0 or max(ids) >= count:
            position, block = next((p, b) for p, b in enumerate(ids, first) if not 0 <= b < count)
            where = f"{self.operator}: block_table[{self.batch}, {position}]"
            raise DeviceFault(f"{where} is {block}, and the cache has {count} blocks")
        offset = start - first * self.block_size
        return self._gather(torch.tensor(ids), slice(offset, offset + stop - start))

    def _gather(self, index: Tensor, window: slice) -> Tensor:
        """Return the tokens of some blocks that are in a window, counted from the first of them."""
        blocks = self.cache.index_select(0, index)
        if self.cache.dim() == 5:
            if len(index) == 1:
                # What is not wanted is left out before tiles are put together, which copies.
                blocks, window = blocks[..., window, :], slice(None)
            return blocks.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)[:, window]
        if self.cache.dim() == 4:
            return blocks.transpose(0, 1).flatten(1, 2)[:, window]
        return blocks.reshape(-1, self.kv_heads, blocks.shape[-1] // self.kv_heads).transpose(0, 1)[:, window]


@dataclass(frozen=True)
class JoinedTokens:
    """The plain and the rotated part of the same tokens, side by side."""

    parts: tuple[Tokens, ...]

    def read(self, start: int, stop: int) -> Tensor:
        """Return the tokens ``start`` to ``stop``."""
        return torch.cat([part.read(start, stop) for part in self.parts], -1)


@dataclass(frozen=True)
class KeyValues:
    """The keys and values of one sequence."""

    keys: Tokens
    values: Tokens

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [kv heads, stop - start, dim] of the tokens in a range, nothing else."""
        return self.keys.read(start, stop), self.values.read(start, stop)


def tokens(request: FusedAttentionRequest, span: Span, tensor: Tensor) -> Tokens:
    """Return one sequence's tokens of a key or value as it was passed, or of a cache of the same blocks."""
    if request.block_table is None:
        window = range(span.key_start, span.key_start + span.key_length)
        return ContiguousTokens(rows(tensor, request.axes, request.kv_heads, span.batch, window))
    return PagedTokens(
        operator=request.check.operator,
        batch=span.batch,
        blocks=request.block_table[span.batch].tolist(),
        cache=tensor,
        block_size=request.block_size,
        kv_heads=request.kv_heads,
    )
