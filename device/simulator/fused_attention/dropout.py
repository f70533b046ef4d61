"""Dropout of attention: a bit for each weight, in the order of sequences, heads, queries and keys.

Sources: op-plugin, ``FlashAttentionKernelNpuOpApi.cpp`` and ``DropoutGenMaskKernelNpuOpApi.cpp``, and its tests, which
have the order. Equal seeds and offsets give equal bits; they are not those that a card draws from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_CHECK = ArgumentChecks("_npu_dropout_gen_mask", default=ErrorCode.WRAPPER)

_ALIGNED = 128
_BITS = 8
_MIXER = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Dropout:
    """Which weights of a call are kept."""

    bits: Tensor
    """uint8, eight weights in each, from the lowest bit on."""
    keep_prob: float

    def kept(self, start: int, shape: Sequence[int]) -> Tensor:
        """Return bool of a shape, True where a weight is kept, from the ``start``-th on."""
        places = torch.arange(start, start + torch.Size(shape).numel())
        return (self.bits.flatten()[places // _BITS] >> (places % _BITS).to(torch.uint8) & 1).bool().view(list(shape))


def drawn(seed: int, offset: int, count: int, keep_prob: float) -> Tensor:
    """Draw a bit for each of some weights, in whole 128 bits.

    Parameters
    ----------
    seed, offset : int
        What decides.
    count : int
        Of weights.
    keep_prob : float
        How likely a bit is 1.

    Returns
    -------
    Tensor
        uint8.
    """
    generator = torch.Generator().manual_seed((seed + offset * _MIXER) % 2**63)
    whole = -(-count // _ALIGNED) * _ALIGNED
    bits = (torch.empty(whole).uniform_(generator=generator) < keep_prob).view(-1, _BITS)
    return (bits << torch.arange(_BITS)).sum(1).to(torch.uint8)


def next_state() -> tuple[int, int]:
    """Return seed and offset for a draw from torch's own generator, which moves on.

    A generator that has drawn nothing gives its seed, and 0.
    """
    generator = torch.default_generator
    seed = generator.initial_seed() % 2**63
    fresh = torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state())
    number = int(torch.empty((), dtype=torch.int64).random_(1, 2**31, generator=generator))
    return seed, 0 if fresh else number


def gen_mask(_like: Tensor, /, size: Sequence[int], p: float, seed: int, offset: int) -> Tensor:
    """Return the bits of a dropout that hides each weight with probability ``p``, as a call of attention draws them.

    Raises
    ------
    OperatorRejected
        ``p`` is no probability.
    """
    if not 0 <= p <= 1:
        words = f"dropout probability has to be between 0 and 1, but got {p}"
        raise _CHECK.rejected("p", p, "0 to 1", ErrorCode.WRAPPER, words)
    return drawn(seed, offset, torch.Size(size).numel(), 1 - p)


def gen_mask_meta(like: Tensor, /, size: Sequence[int]) -> Tensor:
    """Allocate the bits."""
    return like.new_empty(-(-torch.Size(size).numel() // _ALIGNED) * _ALIGNED // _BITS, dtype=torch.uint8)
