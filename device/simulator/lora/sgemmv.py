"""``sgemmv_shrink`` and ``sgemmv_expand``: each segment of tokens has an adapter, and each adapter a rank of its own.

    shrink    y[t, r] = scale * sum over h of x[t, h] weight[adapter, r, h],    r below the adapter's rank
    expand    y[t, o] += sum over r of x[t, r] weight[adapter, o, r]

Slices, as those of a fused qkv, lie side by side in what ``shrink`` writes and ``expand`` reads, and one below the
other in the first matrix: each as wide as the adapter's own rank. Sources: host code, kernels and tests of
sgl-kernel-npu (``csrc/lora``), and sglang 0.5.23's calls. The kernel of ``shrink`` with slices was not read; its places
are those of ``sgemmc_shrink`` and of the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour

_SHRINK = ArgumentChecks("sgemmv_shrink", default=ErrorCode.WRAPPER)
_EXPAND = ArgumentChecks("sgemmv_expand", default=ErrorCode.WRAPPER)

_HALVES = (torch.float16, torch.bfloat16)
_EXPANDED_RANKS = (8, 16, 32, 64)
_FLOATS_PER_BLOCK, _HALVES_PER_BLOCK = 8, 16


@dataclass(frozen=True)
class _Segment:
    """Tokens with one adapter."""

    rows: slice
    adapter: int
    rank: int


def sgemmv_shrink(
    x: Tensor,
    weight: Tensor,
    lora_indices: Tensor,
    seq_len: Tensor,
    lora_ranks: Tensor,
    lora_scales: Tensor,
    y: Tensor,
    slice_count: int,
) -> None:
    """Write products with the first matrices of adapters.

    Parameters
    ----------
    x : Tensor
        [T, hidden], float16 or bfloat16.
    weight : Tensor
        [adapters, slices * R, hidden] or [adapters, 1, slices * R, hidden], dtype of x.
    lora_indices, seq_len : Tensor
        int32, of segments: adapter, negative for none, and number of tokens.
    lora_ranks : Tensor
        int32 [adapters], multiples of 8; 0 leaves tokens out.
    lora_scales : Tensor
        float16 [adapters].
    y : Tensor
        float32 [T, slices * R], below hidden: summed in float32. What is behind the slices of an adapter's own rank,
        and rows without an adapter, stay.
    slice_count : int
        Slices.

    Raises
    ------
    OperatorRejected
        A dtype of x, a rank or the width of y is not one of the above.
    UndefinedBehaviour
        What the host code does not check: other dtypes, gaps, sizes that do not fit.
    DeviceFault
        There is no such adapter.
    """
    _check_ranks(_SHRINK, x, weight, y, x)
    if x.shape[1] <= y.shape[1]:
        words = "hidden in should be greater than hidden out"
        raise _SHRINK.rejected("y", f"of shape {list(y.shape)}", f"fewer columns than {x.shape[1]}", words=words)
    matrices = weight.reshape(weight.shape[0], -1, weight.shape[-1])
    segments = list(_segments(_SHRINK, len(x), lora_indices, seq_len, lora_ranks, len(matrices)))
    found = _misread(x=(x, x.dtype), weight=(weight, x.dtype), lora_scales=(lora_scales, torch.float16))
    found += _misread(y=(y, torch.float32))
    if tuple(matrices.shape[1:]) != (y.shape[1], x.shape[1]) or len(y) < len(x):
        found.append(f"weight is {list(weight.shape)}, x {list(x.shape)} and y {list(y.shape)}")
    if x.shape[1] % _HALVES_PER_BLOCK:
        found.append(f"hidden is {x.shape[1]}, no multiple of {_HALVES_PER_BLOCK}")
    most = y.shape[1] // max(slice_count, 1)
    if slice_count < 1 or y.shape[1] % slice_count:
        found.append(f"slice_count is {slice_count}, and y has {y.shape[1]} columns")
    ranks = sorted({one.rank for one in segments if one.rank % _FLOATS_PER_BLOCK or one.rank > most})
    if ranks:
        found.append(f"ranks {ranks} are no multiples of {_FLOATS_PER_BLOCK} up to {most}")
    _refuse(_SHRINK, found)
    for one in segments:
        width = slice_count * one.rank
        products = x[one.rows].float() @ matrices[one.adapter, :width].float().T
        y[one.rows, :width] = products * lora_scales[one.adapter].float()


def sgemmv_shrink_meta() -> None:
    """Return nothing."""


def sgemmv_expand(
    x: Tensor,
    weight: Tensor,
    lora_indices: Tensor,
    seq_len: Tensor,
    lora_ranks: Tensor,
    sliceOffsets: Tensor,  # noqa: N803 - as the schema has it
    y: Tensor,
) -> Tensor:
    """Add products with the second matrices of adapters, and return y.

    Parameters
    ----------
    x : Tensor
        float32 [T, slices * R].
    weight : Tensor
        [adapters, outputs, R] or [adapters, 1, outputs, R], dtype of y.
    lora_indices, seq_len : Tensor
        int32, of segments: adapter, negative for none, and number of tokens.
    lora_ranks : Tensor
        int32 [adapters]: 8, 16, 32 or 64; 0 leaves tokens out. Of a token's x, slice i begins at i times the rank.
    sliceOffsets : Tensor
        int32 [slices + 1]: columns of y where slices begin.
    y : Tensor
        [T, outputs], float16 or bfloat16: products are summed and added in float32, and rounded once.

    Raises
    ------
    OperatorRejected
        A dtype of y or a rank is not one of the above.
    UndefinedBehaviour
        What the host code does not check: other dtypes, gaps, ranks, sizes that do not fit.
    DeviceFault
        There is no such adapter, or a slice is outside y.
    """
    _check_ranks(_EXPAND, x, weight, y, y)
    matrices = weight.reshape(weight.shape[0], -1, weight.shape[-1])
    segments = list(_segments(_EXPAND, len(x), lora_indices, seq_len, lora_ranks, len(matrices)))
    found = _misread(x=(x, torch.float32), weight=(weight, y.dtype), y=(y, y.dtype))
    found += _misread(sliceOffsets=(sliceOffsets, torch.int32))
    slices = len(sliceOffsets) - 1
    if tuple(matrices.shape[1:]) != (y.shape[1], x.shape[1] // max(slices, 1)) or len(y) < len(x) or slices < 1:
        found.append(f"weight is {list(weight.shape)}, x {list(x.shape)}, y {list(y.shape)}, for {slices} slices")
    ranks = sorted({one.rank for one in segments if one.rank not in _EXPANDED_RANKS or one.rank > matrices.shape[2]})
    if ranks:
        found.append(f"ranks {ranks} are not among {list(_EXPANDED_RANKS)} up to {matrices.shape[2]}")
    _refuse(_EXPAND, found)
    _EXPAND.indices("sliceOffsets", sliceOffsets, y.shape[1] + 1, "ends of columns of y")
    bounds = sliceOffsets.tolist()
    if any(bound % _HALVES_PER_BLOCK for bound in bounds):
        _refuse(_EXPAND, [f"sliceOffsets is {bounds}, no multiples of {_HALVES_PER_BLOCK}"])
    for one in segments:
        for number, (start, end) in enumerate(pairwise(bounds)):
            low = x[one.rows, number * one.rank : (number + 1) * one.rank]
            added = low @ matrices[one.adapter, start:end, : one.rank].float().T
            y[one.rows, start:end] = (added + y[one.rows, start:end].float()).to(y.dtype)
    return y


def sgemmv_expand_meta(y: Tensor) -> Tensor:
    """Return a tensor like y."""
    return torch.empty_like(y)


def _segments(
    check: ArgumentChecks, tokens: int, adapters: Tensor, lengths: Tensor, ranks: Tensor, count: int
) -> Iterator[_Segment]:
    """Yield segments with an adapter that has a rank; tokens behind the last one have none."""
    found = _misread(lora_indices=(adapters, torch.int32), seq_len=(lengths, torch.int32))
    found += _misread(lora_ranks=(ranks, torch.int32))
    if len(adapters) < len(lengths):
        found.append(f"lora_indices has {len(adapters)} elements for {len(lengths)} segments")
    _refuse(check, found)
    start = 0
    for number, length in enumerate(lengths.tolist()):
        rows, start = slice(min(start, tokens), min(start + length, tokens)), start + length
        if length < 0:
            _refuse(check, [f"seq_len is {lengths.tolist()}"])
        if rows.start == rows.stop or adapters[number] < 0:
            continue
        check.indices("lora_indices", adapters[number : number + 1], min(count, len(ranks)), "adapters")
        rank = int(ranks[adapters[number]])
        if rank:
            yield _Segment(rows, int(adapters[number]), rank)


def _misread(**tensors: tuple[Tensor, torch.dtype]) -> list[str]:
    """Return tensors that a kernel reads as another dtype, or as if they had no gaps."""
    found = []
    for name, (tensor, dtype) in tensors.items():
        if tensor.dtype != dtype:
            found.append(f"{name} is {dtype_name(tensor)} and is read as {str(dtype).removeprefix('torch.')}")
        if not tensor.is_contiguous():
            found.append(f"{name} has strides {tensor.stride()} and is read as if it had no gaps")
    return found


def _refuse(check: ArgumentChecks, found: list[str]) -> None:
    if found:
        raise UndefinedBehaviour(f"{check.operator}: {'; '.join(found)}")


def _check_ranks(check: ArgumentChecks, x: Tensor, weight: Tensor, y: Tensor, typed: Tensor) -> None:
    """Refuse what the host code refuses: ``typed`` is of float16 or bfloat16."""
    if typed.dtype not in _HALVES:
        argument = "x" if typed is x else "y"
        words = "only support half and bf16"
        raise check.rejected(argument, dtype_name(typed), "float16 or bfloat16", words=words)
    for argument, tensor, ranks, words in (
        ("x", x, (2,), "x should be [batch_size, hidden_in]"),
        ("weight", weight, (3, 4), "weight should be [num_loras, hidden_out, hidden_in]"),
        ("y", y, (2,), "y should be [batch_size, hidden_out]"),
    ):
        if tensor.dim() not in ranks:
            allowed = " or ".join(f"rank {rank}" for rank in ranks)
            raise check.rejected(argument, f"of rank {tensor.dim()}", allowed, words=words)
