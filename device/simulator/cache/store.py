"""Writing tokens into the slots of caches: checked for all caches before any is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.cache.physical import written_bytes
from npudiff.device.simulator.cache.slots import Layout, Rows, Tiles, check_slots, write, written_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """Tokens, and the cache that they go into."""

    name: str
    """The cache's argument."""
    tokens: Tensor
    """[tokens, kv heads, dim]."""
    cache: Tensor
    """Contiguous, written."""
    layout: Layout
    """How tokens lie in it."""


def layout_of(tokens: Tensor, nz_block_size: int | None) -> Layout:
    """Return the layout of tokens [tokens, kv heads, dim]: NZ with a block size, else ND."""
    token = tokens[0].numel() * tokens.itemsize
    return Rows(token) if nz_block_size is None else Tiles(token, nz_block_size)


def token_bytes(tokens: Tensor) -> Tensor:
    """Return a copy of tokens [tokens, ...] as uint8 [tokens, bytes per token], or a view of contiguous ones."""
    return tokens.contiguous().view(len(tokens), -1).view(torch.uint8)


def available_slots(cache: Tensor, layout: Layout) -> int:
    """Return how many slots a cache has, seen with a layout."""
    return layout.slots(cache.numel() * cache.itemsize)


def store(operator: str, argument: str, slots: Tensor, targets: Sequence[Target]) -> None:
    """Write the tokens of every target into the same slots.

    Parameters
    ----------
    operator, argument : str
        For messages: the argument is that of the slots.
    slots : Tensor
        Integers [tokens]; negative ones are skipped, of equal ones the last is written.
    targets : sequence of Target
        What is written where.

    Raises
    ------
    DeviceFault
        A slot is beyond a cache; nothing was written.
    """
    slots = slots.to(torch.int64)
    for target in targets:
        available = available_slots(target.cache, target.layout)
        check_slots(operator, argument, slots, available, target.name)
    chosen = written_tokens(slots)
    for target in targets:
        with written_bytes(operator, target.name, target.cache) as memory:
            write(memory, target.layout, token_bytes(target.tokens)[chosen], slots[chosen])
