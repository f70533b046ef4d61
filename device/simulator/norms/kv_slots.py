"""Where ``npu_kv_rmsnorm_rope_cache`` puts each token: from ``index`` to slots, from slots to elements.

A *slot* is a token's place in a cache counted from the cache's beginning: sequence * cache length + position
in mode Norm, block * block size + row in all others. Sources: the operator's documentation and CANN's
kernels ``kv_rms_norm_rope_cache_b16_b1sd.h``, ``..._b16_pa.h`` and ``..._b16_pa_nz_quant.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.errors import DeviceFault, UndefinedBehaviour
from npudiff.device.simulator.norms.kv_request import CACHE_MODES, CacheMode, KvRequest

# Bytes of one fractal's row: 16 elements of 16 bits, or 32 of int8.
_FRACTAL_ROW_BYTES = 32


def slots(request: KvRequest) -> Tensor:
    """Return the slot of every token, int64 [B * S]; negative where a token is not to be written.

    Raises
    ------
    DeviceFault
        A token would be written outside the caches.
    UndefinedBehaviour
        In mode Norm, a token would be written into the cache of the next sequence.
    """
    mode, index = CACHE_MODES[request.cache_mode], request.index
    tokens = torch.arange(request.batch * request.length)
    sequence, position = tokens // request.length, tokens % request.length
    capacity = request.slots_per_block
    if not mode.paged:
        given = index.flatten()
        slot = sequence * capacity + given
    elif not mode.per_block:
        given = slot = index.flatten()
    else:
        entries = -(-request.length // capacity)
        given = index.flatten()[sequence * entries + position // capacity]
        # SOURCE: only the block is taken from the entry; the row is the token's.
        slot = torch.div(given, capacity, rounding_mode="floor") * capacity + position % capacity
    slot = torch.where(given < 0, given, slot)
    _check_inside(request, given, slot)
    if not mode.paged and (given >= capacity).any():
        token = int((given >= capacity).nonzero()[0])
        raise UndefinedBehaviour(
            f"{request.check.operator}: index of token {token} is {int(given[token])}, beyond cache length {capacity}: "
            "it falls into the cache of another sequence"
        )
    return slot


def _check_inside(request: KvRequest, given: Tensor, slot: Tensor) -> None:
    total = request.k_cache.shape[0] * request.slots_per_block
    outside = (slot >= total).nonzero()
    if len(outside):
        token = int(outside[0])
        message = f"{request.check.operator}: index of token {token} is {int(given[token])}"
        raise DeviceFault(f"{message}, the caches have {total} slots")


def element_offsets(slot: Tensor, cache: Tensor, block_size: int, *, fractal: bool) -> Tensor:
    """Return where the elements of slots of one head lie, counted from the cache's beginning.

    Parameters
    ----------
    slot : Tensor
        int64 [n], none negative.
    cache : Tensor
        Contiguous, D elements on the last axis.
    block_size : int
        Slots per block.
    fractal : bool
        Whether a block is stored as [D / c, block size, 1, c].

    Returns
    -------
    Tensor
        int64 [n, D].
    """
    dim = cache.shape[-1]
    width = _FRACTAL_ROW_BYTES // cache.element_size() if fractal else dim
    element = torch.arange(dim)
    block, row = slot.unsqueeze(1) // block_size, slot.unsqueeze(1) % block_size
    return ((block * (dim // width) + element // width) * block_size + row) * width + element % width


def offsets_of_heads(slot: Tensor, cache: Tensor, heads: int, block_size: int, mode: CacheMode) -> Tensor:
    """Return where the elements of all heads of slots lie: int64 [n, N * D], else as :func:`element_offsets`.

    Heads lie between rows and elements of a paged cache, and before the rows in all others.
    """
    head = torch.arange(heads)
    if mode.paged and not mode.fractal:
        places, size = slot.unsqueeze(1) * heads + head, block_size * heads
    else:
        block, row = slot.unsqueeze(1) // block_size, slot.unsqueeze(1) % block_size
        places, size = (block * heads + head) * block_size + row, block_size
    return element_offsets(places.flatten(), cache, size, fractal=mode.fractal).reshape(len(slot), -1)
