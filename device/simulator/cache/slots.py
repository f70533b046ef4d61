"""Where a token lies in a cache, and moving its bytes there or back.

A slot is a token's place in a paged cache: row ``slot % block size`` of block ``slot // block size``. How a
row lies in memory is one of two layouts, and neither depends on the dtype: NZ tiles are 32 bytes wide.
Sources: CANN's kernels ``reshape_and_cache_nd`` (ascend-transformer-boost: slot * token size),
``reshape_and_cache_nz`` and ``scatter_pa_kv_cache_nz_fully_load.h`` (ops-transformer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from npudiff.device.simulator.errors import DeviceFault

if TYPE_CHECKING:
    from torch import Tensor

TILE_BYTES = 32


class Layout(Protocol):
    """How the bytes of tokens are spread over memory, in units that are not torn apart.

    Attributes
    ----------
    unit : int
        Bytes per unit.
    """

    @property
    def unit(self) -> int:
        """Bytes per unit."""

    def slots(self, memory: int) -> int:
        """Return how many whole slots a memory of so many bytes has."""

    def units(self, slots: Tensor) -> Tensor:
        """Return the units of every slot, int64 [slots, units per token], in the order of a token's bytes."""


@dataclass(frozen=True)
class Rows:
    """ND, [blocks, block size, heads, dim]: a token is one piece, and tokens follow each other."""

    token: int
    """Bytes per token, of all heads."""

    @property
    def unit(self) -> int:
        """A token."""
        return self.token

    def slots(self, memory: int) -> int:
        """Return how many tokens fit."""
        return memory // self.token

    def units(self, slots: Tensor) -> Tensor:
        """Return the slots themselves, [slots, 1]."""
        return slots.unsqueeze(1)


@dataclass(frozen=True)
class Tiles:
    """NZ, [blocks, heads * dim / C0, block size, C0]: a token is cut into tiles a block apart."""

    token: int
    """Bytes per token, of all heads; a multiple of 32."""
    block_size: int
    """Tokens per block."""

    @property
    def unit(self) -> int:
        """One row of a tile, C0 elements."""
        return TILE_BYTES

    def slots(self, memory: int) -> int:
        """Return how many tokens the whole blocks hold."""
        return memory // (self.token * self.block_size) * self.block_size

    def units(self, slots: Tensor) -> Tensor:
        """Return rows of the memory as [rows, 32 bytes].

        With blocks of 4 and tokens of two tiles, slot 5 has rows 9 and 13.
        """
        tiles = self.token // TILE_BYTES
        block = slots.div(self.block_size, rounding_mode="floor")
        first = block * (self.block_size * tiles) + slots % self.block_size
        return first.unsqueeze(1) + torch.arange(tiles) * self.block_size


def write(memory: Tensor, layout: Layout, tokens: Tensor, slots: Tensor) -> None:
    """Put tokens into memory.

    Parameters
    ----------
    memory : Tensor
        uint8 [bytes], written.
    layout : Layout
        Where slots are.
    tokens : Tensor
        uint8 [tokens, bytes per token].
    slots : Tensor
        int64 [tokens], each inside the memory and none twice.
    """
    units = memory[: len(memory) // layout.unit * layout.unit].view(-1, layout.unit)
    units.index_copy_(0, layout.units(slots).flatten(), tokens.reshape(-1, layout.unit))


def read(memory: Tensor, layout: Layout, slots: Tensor) -> Tensor:
    """Return the tokens in some slots of a memory: uint8 [slots, bytes per token]."""
    units = memory[: len(memory) // layout.unit * layout.unit].view(-1, layout.unit)
    return units.index_select(0, layout.units(slots).flatten()).view(len(slots), -1)


def check_slots(operator: str, argument: str, slots: Tensor, available: int, cache: str) -> None:
    """Fail for slots beyond a cache. No operator validates them: hardware writes somewhere else.

    Raises
    ------
    DeviceFault
        Naming the first of them.
    """
    beyond = (slots >= available).nonzero()
    if len(beyond):
        position = int(beyond[0])
        raise DeviceFault(
            f"{operator}: {argument}[{position}] is {int(slots[position])}, {cache} has {available} slots"
        )


def written_tokens(slots: Tensor) -> Tensor:
    """Return which tokens end up in the cache, as int64 positions.

    Negative slots are skipped (``if (slotValue < 0) continue`` in all kernels). Of several tokens for one slot,
    the last one stays; on hardware that is whichever core is last.
    """
    ordered, positions = slots.sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return positions[last & (ordered >= 0)]
