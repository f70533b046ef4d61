"""Writing the rows of tokens into paged caches of one head, in both operators.

Slot ``s`` is row ``s % block size`` of block ``s // block size``. In ND order a row is D elements in one piece; in NZ
order a block lies as [D / 16, block size, 16], so that element ``d`` is in tile ``d // 16``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.errors import DeviceFault
from npudiff.device.simulator.norms.kv_slots import element_offsets
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile


@dataclass(frozen=True)
class Pages:
    """Where the tokens of a call go."""

    slots: Tensor
    """int64, one per token that is written, ascending; equal ones are in the order of their tokens."""
    tokens: Tensor
    """int64, the token that goes to each slot."""
    is_last: Tensor
    """bool: no later token goes to the same slot."""
    block_size: int
    """Slots per block."""
    fractal: bool
    """Whether blocks are in NZ order."""


def pages(
    operator: str, argument: str, index: Tensor, blocks: int, block_size: int, profile: CannProfile, *, fractal: bool
) -> Pages:
    """Find the places of all tokens, before anything is written.

    Parameters
    ----------
    operator, argument : str
        For messages; the argument is that of the slots.
    index : Tensor
        Integers, one slot per token.
    blocks, block_size : int
        Sizes of the caches. Without blocks nothing is written, whatever the index says (DOC: caches of no tokens
        are not updated).
    profile : CannProfile
        Decides what a negative slot does.
    fractal : bool
        Whether blocks are in NZ order.

    Raises
    ------
    DeviceFault
        A slot is outside the caches.
    """
    slots = index.flatten().to(torch.int64)
    if not blocks:
        slots = torch.full_like(slots, -1)
    elif profile.mla_negative_slot == "fault":
        _check(operator, argument, slots, slots < 0, blocks * block_size)
    _check(operator, argument, slots, slots >= blocks * block_size, blocks * block_size)
    tokens = (slots >= 0).nonzero().flatten()
    ordered, order = slots[tokens].sort(stable=True)
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    return Pages(ordered, tokens[order], is_last, block_size, fractal)


def _check(operator: str, argument: str, slots: Tensor, outside: Tensor, available: int) -> None:
    positions = outside.nonzero()
    if len(positions):
        token = int(positions[0])
        message = f"{operator}: {argument} of token {token} is {int(slots[token])}, the caches have {available} slots"
        raise DeviceFault(message)


def write(cache: Tensor, rows: Tensor, where: Pages, profile: CannProfile) -> None:
    """Put one row per token into a cache.

    Parameters
    ----------
    cache : Tensor
        Contiguous, whole blocks of rows; written.
    rows : Tensor
        [tokens, D] in the dtype of the cache.
    where : Pages
        The places.
    profile : CannProfile
        Decides what a slot holds that several tokens go to.
    """
    flat, width = cache.view(-1), rows.shape[1]
    offsets = element_offsets(where.slots, flat.view(-1, width), where.block_size, fractal=where.fractal)
    flat[offsets[where.is_last]] = rows[where.tokens[where.is_last]]
    if profile.mla_duplicate_slot == "unpredictable":
        flat[offsets[~where.is_last]] = unwritten((width,), rows.dtype)
