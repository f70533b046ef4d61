"""Blocks of neighbours along an axis, the last one filled with zeros, and pairs of their scales."""

from __future__ import annotations

import torch
from torch import Tensor


def in_blocks(x: Tensor, axis: int, size: int) -> Tensor:
    """Return [..., blocks, size]: the axis is the last one, and cut.

    Parameters
    ----------
    x : Tensor
        Any dtype.
    axis : int
        From the front.
    size : int
        Elements of a block.

    Returns
    -------
    Tensor
        A copy; zeros fill the last block.
    """
    moved = x.movedim(axis, -1)
    missing = -moved.shape[-1] % size
    padded = torch.nn.functional.pad(moved, (0, missing))
    return padded.reshape(*padded.shape[:-1], padded.shape[-1] // size, size)


def out_of_blocks(blocks: Tensor, axis: int, length: int) -> Tensor:
    """Return what :func:`in_blocks` cut, with the axis in its place and of its length."""
    return blocks.flatten(-2)[..., :length].movedim(-1, axis).contiguous()


def in_pairs(scales: Tensor, axis: int) -> Tensor:
    """Return bytes of blocks, [..., blocks], with the axis in its place, half as long, and two neighbours behind.

    An odd one has the byte 0 beside it.
    """
    padded = torch.nn.functional.pad(scales, (0, scales.shape[-1] % 2))
    pairs = padded.reshape(*padded.shape[:-1], padded.shape[-1] // 2, 2)
    return pairs.movedim(-2, axis).contiguous()


def shape_in_pairs(shape: torch.Size, axis: int, size: int) -> list[int]:
    """Return the shape of :func:`in_pairs` for a tensor's shape and a block's size."""
    sizes = list(shape)
    sizes[axis] = (-(-sizes[axis] // size) + 1) // 2
    return [*sizes, 2]
