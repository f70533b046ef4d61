"""The part of a linear layer that a rank loads from a checkpoint, as the loaders of vllm and sglang cut it.

Sources: vllm, ``model_executor/layers/linear.py`` (``MergedColumnParallelLinear``, ``QKVParallelLinear`` and
``RowParallelLinear``, of checkpoints whose projections are fused on disk) and ``parameter.py``; sglang has the same in
``srt/layers``. vllm-ascend #11112 gives ranks whole groups where the inner axis does not divide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from npudiff.reference.sharded_linear import LinearCheckpoint

PER_COLUMN = ("weight", "bias", "scale", "quant_bias", "deq_scale", "scale_bias")
"""Tensors whose first axis is that of the columns."""


def columns_of(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
    """Load a rank's columns: those of each projection by themselves, side by side."""
    cuts = list(projection_cuts(layer, rank, ranks))
    return with_rows(layer, cuts)


def projection_cuts(layer: LinearCheckpoint, rank: int, ranks: int) -> Iterator[tuple[int, int]]:
    """Where a rank's columns of each projection begin in the matrix, and how many there are."""
    offset = 0
    for width, replicas in zip(layer.projections, layer.copies, strict=True):
        size = width // (ranks // replicas)
        yield offset + rank // replicas * size, size
        offset += width


def with_rows(layer: LinearCheckpoint, cuts: list[tuple[int, int]]) -> LinearCheckpoint:
    """A layer with some of its columns."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor.narrow(0, start, size) for start, size in cuts])

    named = {name: getattr(layer, name) for name in PER_COLUMN}
    loaded: dict[str, Any] = {name: cut(tensor) for name, tensor in named.items() if tensor is not None}
    return replace(layer, **loaded, projections=tuple(size for _, size in cuts))


def inner_of(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
    """Load a rank's part of the inner axis, its scales of groups, and its columns of ``scale_bias``."""
    start, size = inner_cut(layer, rank, ranks)
    scale, chunks = layer.scale, layer.scale_bias
    if scale is not None and layer.group_size:
        first = start // layer.group_size
        scale = scale.narrow(1, first, -(-(start + size) // layer.group_size) - first)
    if chunks is not None:
        each = chunks.shape[1] // ranks
        chunks = chunks.narrow(1, rank * each, each)
    return replace(layer, weight=layer.weight.narrow(1, start, size).contiguous(), scale=scale, scale_bias=chunks)


def inner_cut(layer: LinearCheckpoint, rank: int, ranks: int) -> tuple[int, int]:
    """Where a rank's part of the inner axis begins, and how long it is."""
    inner, group = layer.weight.shape[1], layer.group_size
    if not group or inner % (group * ranks) == 0:
        return rank * (inner // ranks), inner // ranks
    each, more = divmod(-(-inner // group), ranks)
    start = group * (rank * each + min(rank, more))
    return start, min(inner, start + group * (each + (rank < more))) - start
